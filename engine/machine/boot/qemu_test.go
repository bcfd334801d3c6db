package boot_test

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cleave-project/cleave/agent"
	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine/machine/vitals"
	"github.com/cleave-project/cleave/kernel"
	"github.com/cleave-project/cleave/kernel/kerneltest"
)

const qemuProgram = "/usr/bin/qemu-system-x86_64"

// stock is Debian's kernel for virtual machines, with an initramfs of ours.
var stock = sync.OnceValues(func() (kernel.Boot, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	s, err := kerneltest.Stock(ctx, filepath.Join(shared().dir, "kernels"), func(string) (string, error) { return shared().agent, nil })
	if err != nil {
		return kernel.Boot{}, err
	}
	return s.Boot(ctx, api.KindVM, "amd64", "")
})

// qemu is QEMU's command line: the smallest machine that has what boot uses.
func (g *guest) qemu() []string {
	b, err := stock()
	if err != nil {
		g.t.Fatal(err)
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-machine", "microvm,pcie=on,rtc=on", "-accel", "tcg", "-cpu", "max", "-m", "128M",
		"-kernel", b.Image, "-initrd", b.Initrd, "-no-reboot",
		"-append", "console=ttyS0 quiet loglevel=4 panic=-1 tsc_early_khz=1000000 random.trust_cpu=on " + vitals.DisksArg + vitals.DisksVirtio,
		"-device", "virtio-serial-pci",
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		"-chardev", "socket,id=agent,path=" + g.socket + ",server=on,wait=off", "-device", "virtserialport,chardev=agent,name=" + vitals.PortAgent,
		"-chardev", "file,id=out,path=/dev/fd/3,append=on", "-device", "virtserialport,chardev=out,name=" + vitals.PortStdout,
		"-chardev", "file,id=err,path=/dev/fd/4,append=on", "-device", "virtserialport,chardev=err,name=" + vitals.PortStderr,
	}
	for name, file := range map[string]string{"image": g.image, "root": g.root, "control": g.control} {
		readOnly := ""
		if name == "image" {
			readOnly = ",read-only=on"
		}
		args = append(args, "-drive", "if=none,format=raw,id="+name+",file="+file+readOnly, "-device", "virtio-blk-pci,drive="+name+",serial="+name)
	}
	return args
}

// newQEMU is newGuest under QEMU.
func newQEMU(t testing.TB, script string) *guest {
	t.Helper()
	if _, err := exec.LookPath(qemuProgram); err != nil {
		t.Skipf("%v (Debian: qemu-system-x86)", err)
	}
	if os.Geteuid() != 0 {
		t.Skip("kernels are kept by root")
	}
	g := newGuest(t, script)
	g.socket = filepath.Join(g.dir, "agent.sock")
	return g
}

// Ports and disks that have names; the rest is the same kernel code.
func TestApplicationUnderQEMU(t *testing.T) {
	g := newQEMU(t, "echo out; echo err >&2; cat; i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; echo last")
	g.boot.Process.Stdin = true
	g.start()
	c := g.client(g.session())
	in, err := c.Input(g.context())
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Repeat("0123456789abcdef", 10_000)
	if _, err := in.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	in.Close()
	if s := g.end(); s.Exit != (api.ExitStatus{Reason: "exit"}) {
		t.Errorf("status %+v", s)
	}
	out := g.stdout.String()
	if !strings.HasPrefix(out, "out\n"+text+"line 0\n") || !strings.HasSuffix(out, "line 2999\nlast\n") || g.stderr.String() != "err\n" {
		t.Errorf("%d bytes at stdout, %q at stderr", len(out), g.stderr.String())
	}
}

// The port tells when the host's end closes: the agent hangs commands up, and
// sleeps until there is a host again.
func TestAgentUnderQEMUOutlivesItsHosts(t *testing.T) {
	g := newQEMU(t, "exec sleep 1000").start()
	s := g.session()
	c := g.client(s)
	e, err := c.Exec(g.context(), execRequest("echo ready; exec sleep 12345"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(e.Stdout(), make([]byte, len("ready"))); err != nil {
		t.Fatal(err)
	}
	before := g.ticks(c)
	s.Close()
	const alone = 5 * time.Second
	time.Sleep(alone)
	s = g.session()
	c = g.client(s)
	if out := g.exec(c, "ps -o args"); strings.Contains(out, "sleep 12345") {
		t.Errorf("a command whose host went is still there:\n%s", out)
	}
	// Ending the session and connecting again cost their part, emulated.
	if used := g.ticks(c) - before; used > int(alone.Seconds()*100)*2/3 {
		t.Errorf("the agent used %d hundredths of a second while there was nobody", used)
	}
	s.Close()
	g.loseHosts(func(int) {})
}

// ticks is how much of a CPU PID 1 has used, in hundredths of a second
// (proc(5), /proc/PID/stat fields 14 and 15).
func (g *guest) ticks(c *agent.Client) int {
	g.t.Helper()
	fields := strings.Fields(g.exec(c, "cat /proc/1/stat"))
	user, _ := strconv.Atoi(fields[13])
	system, _ := strconv.Atoi(fields[14])
	return user + system
}
