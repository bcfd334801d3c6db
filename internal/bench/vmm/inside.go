package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/vmm/control"
)

const (
	diskSize   = 128 << 20
	guestLimit = 2 * time.Minute
	tap        = "tap0"
	command    = "console=ttyS0 quiet loglevel=1 panic=-1 8250.nr_uarts=1 no_timer_check tsc=reliable pcie_ports=native cryptomgr.notests "
)

// monitor is one that is measured.
type monitor struct {
	name string
	// args are of a guest with 1 processor and 128 MiB; io has a disk and a
	// port.
	args func(word string, io bool, more ...string) []string
}

var monitors = []monitor{
	{"cleave-vmm", func(word string, io bool, more ...string) []string {
		args := []string{"/lab/cleave-vmm", "--kernel", "/lab/kernel", "--initrd", "/lab/initrd", "--memory", "128MiB", "--command", command + word}
		if io {
			args = append(args, "--disk", "disk", "--net", tap)
		}
		return append(args, more...)
	}},
	{"QEMU microvm", func(word string, io bool, more ...string) []string {
		args := []string{
			"/lab/qemu/lib/ld-linux-x86-64.so.2", "--library-path", "/lab/qemu/lib", "/lab/qemu/qemu", "-L", "/lab/qemu/share",
			"-machine", "microvm,pcie=on,acpi=on,mem-merge=off,dump-guest-core=off", "-accel", "kvm", "-cpu", "host", "-m", "128M",
			"-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
			"-kernel", "/lab/kernel", "-initrd", "/lab/initrd", "-append", command + word,
		}
		if io {
			args = append(args, "-blockdev", "driver=file,filename=disk,node-name=disk,aio=threads", "-device", "virtio-blk-pci,drive=disk",
				"-netdev", "tap,id=net,ifname="+tap+",script=no,downscript=no,vhost=off", "-device", "virtio-net-pci,netdev=net,romfile=")
		}
		return append(args, more...)
	}},
}

// guest is one that runs.
type guest struct {
	cmd   *exec.Cmd
	begin time.Time
	lines chan line
	ended chan error
}

type line struct {
	text string
	at   time.Time
}

func start(args []string) (*guest, error) {
	g := &guest{cmd: exec.Command(args[0], args[1:]...), lines: make(chan line, 4096), ended: make(chan error, 1)}
	out, err := g.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	g.cmd.Stderr = os.Stderr
	g.begin = time.Now()
	if err := g.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(g.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			select {
			case g.lines <- line{s.Text(), time.Now()}:
			default: // of ticks there are enough
			}
		}
		g.ended <- g.cmd.Wait()
	}()
	return g, nil
}

// wait returns the next line with a text.
func (g *guest) wait(text string) (line, error) {
	for timeout := time.After(guestLimit); ; {
		select {
		case l, ok := <-g.lines:
			switch {
			case !ok:
				return l, fmt.Errorf("%w before %q", errLost, text)
			case strings.Contains(l.text, text):
				return l, nil
			}
		case <-timeout:
			return line{}, fmt.Errorf("%w, or doesn't go on, before %q", errLost, text)
		}
	}
}

func (g *guest) end() error {
	for range g.lines { // up to its end
	}
	return <-g.ended
}

// kill pulls the plug.
func (g *guest) kill() {
	_ = g.cmd.Process.Kill()
	_ = g.end()
}

// inside measures, and prints.
func inside(ctx context.Context, rounds int) error {
	if err := makeTap(); err != nil {
		return err
	}
	if out, err := exec.Command("sh", "-c", setUp).CombinedOutput(); err != nil {
		return fmt.Errorf("set up the host: %w: %s", err, out)
	}
	results := table{}
	for n := range rounds {
		for _, part := range []func(monitor, table) error{boots, works} {
			for _, m := range monitors {
				if err := ctx.Err(); err != nil {
					return err
				}
				fmt.Fprintf(os.Stderr, "round %d: %s\n", n+1, m.name)
				if err := again(func() error { return part(m, results) }); err != nil {
					return fmt.Errorf("%s: %w", m.name, err)
				}
			}
		}
		if err := again(func() error { return restores(results) }); err != nil {
			return fmt.Errorf("restore: %w", err)
		}
		results.print(os.Stdout) // of so many rounds: who has seen enough interrupts
	}
	return nil
}

// errLost is that a guest has ended where it should not have.
var errLost = errors.New("the guest has ended")

// again measures once more when a guest is lost, as an emulated host loses some
// (docs/lab.md), of any monitor. What was measured of it until then counts.
func again(measure func() error) (err error) {
	for range 4 {
		if err = measure(); !errors.Is(err, errLost) {
			break
		}
		fmt.Fprintln(os.Stderr, "once more:", err)
	}
	return err
}

// makeTap makes a tap that stays.
func makeTap() error {
	if out, err := exec.Command("modprobe", "tun").CombinedOutput(); err != nil {
		return fmt.Errorf("load tun: %w: %s", err, out)
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq(tap)
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, r); err != nil {
		return fmt.Errorf("make a tap: %w", err)
	}
	return unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1)
}

// setUp makes the disk, and the tap ready.
const setUp = `set -e
modprobe kvm_amd 2> /dev/null || modprobe kvm_intel
mountpoint -q /sys/kernel/debug || mount -t debugfs debug /sys/kernel/debug
ip addr add 10.99.0.1/24 dev tap0
ip link set tap0 up
dd if=/dev/urandom of=disk bs=1M count=128 2> /dev/null
`

// boots measures from the start of the process to the guest's first.
func boots(m monitor, r table) error {
	g, err := start(m.args("boot-only", false))
	if err != nil {
		return err
	}
	l, err := g.wait("guest: init")
	if err != nil {
		g.kill()
		return err
	}
	r.add(boot, m.name, l.at.Sub(g.begin).Seconds()*1000)
	return g.end()
}

// works measures a guest that reads, writes, sends and receives.
func works(m monitor, r table) error {
	send, err := listen(":5000", func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	if err != nil {
		return err
	}
	defer send.Close()
	receive, err := listen(":5001", func(c net.Conn) { _, _ = c.Write(make([]byte, 64<<20)) })
	if err != nil {
		return err
	}
	defer receive.Close()
	g, err := start(m.args("io", true))
	if err != nil {
		return err
	}
	if err := g.measure(m, r); err != nil {
		g.kill()
		return err
	}
	return g.end()
}

// measure follows what the guest says.
func (g *guest) measure(m monitor, r table) error {
	if _, err := g.wait("guest: idle"); err != nil {
		return err
	}
	kib, err := resident(g.cmd.Process.Pid)
	if err != nil {
		return err
	}
	r.add(memory, m.name, float64(kib)/1024)
	for _, p := range phases {
		begin, err := g.wait("guest: begin " + p.name)
		if err != nil {
			return err
		}
		before := exits()
		end, err := g.wait("guest: end")
		if err != nil {
			return err
		}
		r.add(p.rate, m.name, p.mib/end.at.Sub(begin.at).Seconds())
		r.add(p.exits, m.name, float64(exits()-before)/p.mib)
	}
	return nil
}

// listen serves each connection.
func listen(addr string, serve func(net.Conn)) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serve(c)
			c.Close()
		}
	}()
	return l, nil
}

// restores measures from the start of the process to what the guest says first.
func restores(r table) error {
	ours := monitors[0]
	for _, name := range []string{"snap", "c"} {
		if err := os.RemoveAll(name); err != nil {
			return err
		}
	}
	g, err := start(ours.args("ticks", false, "--control", "c"))
	if err != nil {
		return err
	}
	defer g.kill()
	if _, err := g.wait("guest: tick"); err != nil {
		return err
	}
	if err := save("c", "snap"); err != nil {
		return err
	}
	again, err := start([]string{"/lab/cleave-vmm", "--restore", "snap"})
	if err != nil {
		return err
	}
	defer again.kill()
	l, err := again.wait("")
	if err != nil {
		return err
	}
	r.add(restore, ours.name, l.at.Sub(again.begin).Seconds()*1000)
	return nil
}

func save(socket, dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	var files []*os.File
	for _, name := range []string{"state.json", "memory"} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		defer f.Close()
		files = append(files, f)
	}
	c, err := control.Dial(context.Background(), socket)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Save(context.Background(), control.Save{}, files[0], files[1])
}

// exits is how often guests of this host have left to it.
func exits() uint64 {
	b, err := os.ReadFile("/sys/kernel/debug/kvm/exits")
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	return n
}

// resident is what a process and its children have in memory beside their
// guest's, in KiB: all mappings but those of the guest's size, of which pages
// that several processes have, as a jail's two have their program, count once.
func resident(pid int) (kib uint64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return 0, err
	}
	var size, pss uint64
	for l := range strings.Lines(string(b)) {
		if _, err := fmt.Sscanf(l, "Size: %d kB", &size); err == nil {
			continue
		}
		if _, err := fmt.Sscanf(l, "Pss: %d kB", &pss); err == nil && size != 128<<10 {
			kib += pss
		}
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return kib, nil // a kernel that doesn't say
	}
	for _, word := range strings.Fields(string(children)) {
		child, err := strconv.Atoi(word)
		if err != nil {
			return 0, err
		}
		n, err := resident(child)
		if err != nil {
			return 0, err
		}
		kib += n
	}
	return kib, nil
}
