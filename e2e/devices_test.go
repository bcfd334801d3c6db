package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/md5"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cleave-project/cleave/lab"
	"github.com/cleave-project/cleave/vmm/control"
)

//go:embed testdata/devices-guest.sh
var devicesGuest []byte

// devicesModules are what the guests load beside what every machine does.
var devicesModules = []string{"virtio_mem", "nd_pmem", "virtio_pmem", "vmw_vsock_virtio_transport"}

// TestMonitorsDevicesInAGuest has stock kernels with 1, 2 and 4 processors on
// a host of the lab use what the monitor has: sockets, memory that grows and
// shrinks, memory in huge pages, a file as memory, a qcow2 image.
func TestMonitorsDevicesInAGuest(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a host under emulation")
	}
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skipf("needs a program: %v", err)
	}
	lab.Again(t, monitorsDevices)
}

func monitorsDevices(t testing.TB) {
	dir := t.TempDir()
	bin, err := filepath.Abs("../bin")
	if err != nil {
		t.Fatal(err)
	}
	kernel, initrd := devicesGuestFiles(t, dir, bin)
	image := filepath.Join(dir, "image.qcow2")
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", image, "64M").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	h := lab.Hosts(t, 1, lab.KVM, lab.CPUs(2), lab.Memory(2<<30),
		lab.File("cleave-vmm", filepath.Join(bin, "cleave-vmm")), lab.File("guest-kernel", kernel),
		lab.File("guest-initrd", initrd), lab.File("image.qcow2", image))[0]
	lab.Run(t, h, TestMonitorsDevicesInside)
}

// devicesGuestFiles are what the guests boot.
func devicesGuestFiles(t testing.TB, dir, bin string) (kernel, initrd string) {
	t.Helper()
	peer := filepath.Join(dir, "peer")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", peer, "./peer")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	files := map[string][]byte{"init": devicesGuest}
	for to, from := range map[string]string{"bin/busybox": filepath.Join(bin, "busybox"), "bin/peer": peer} {
		var err error
		if files[to], err = os.ReadFile(from); err != nil {
			t.Fatal(err)
		}
	}
	return lab.Guest(t, files, devicesModules...)
}

// TestMonitorsDevicesInside is the half in the host.
func TestMonitorsDevicesInside(t *testing.T) {
	lab.Inside(t)
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	b, err := os.ReadFile("/lab/image.qcow2")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(image, b, 0o600); err != nil {
		t.Fatal(err)
	}
	disk := image + ",format=qcow2"
	if out, err := exec.Command("modprobe", "kvm_amd").CombinedOutput(); err != nil {
		t.Logf("%v: %s", err, out) // it may be another kind of processor
	}
	t.Run("2 processors and all devices", func(t *testing.T) { devicesGuestRuns(t, dir, disk) })
	t.Run("1 processor, memory in huge pages", func(t *testing.T) {
		args := []string{"--memory", "128MiB,hugepages=2M", "--disk", disk}
		setHugePages(t, "0")
		if out, err := monitorCommand(t, "short", args...).CombinedOutput(); err == nil || !strings.Contains(string(out), "64 huge pages") {
			t.Errorf("without huge pages: %v: %s", err, out)
		}
		setHugePages(t, "70")
		g := startGuest(t, monitorCommand(t, "short", args...))
		g.wait(t, "guest: 1 CPUs, 1 work")
		if info, err := os.ReadFile("/proc/meminfo"); err != nil || bytes.Contains(info, []byte("HugePages_Free:       70\n")) {
			t.Errorf("all huge pages are free: %v", err)
		}
		g.wait(t, "guest: image has written")
		g.ends(t)
		setHugePages(t, "0")
	})
	t.Run("4 processors", func(t *testing.T) {
		g := startGuest(t, monitorCommand(t, "short", "--cpus", "4", "--memory", "256MiB", "--disk", disk+",readonly"))
		g.wait(t, "guest: 4 CPUs, 4 work")
		g.wait(t, "guest: image has written")
		g.ends(t)
	})
}

func setHugePages(t *testing.T, n string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/vm/nr_hugepages", []byte(n), 0); err != nil {
		t.Fatal(err)
	}
}

// monitorCommand runs a guest.
func monitorCommand(t *testing.T, word string, args ...string) *exec.Cmd {
	return exec.CommandContext(t.Context(), "/lab/cleave-vmm", append([]string{
		"--kernel", "/lab/guest-kernel", "--initrd", "/lab/guest-initrd", "--command", "console=ttyS0 quiet panic=-1 8250.nr_uarts=1 " + word,
	}, args...)...)
}

// labGuest is a guest that runs.
type labGuest struct {
	lines chan string
	ended chan error
}

func startGuest(t *testing.T, c *exec.Cmd) *labGuest {
	t.Helper()
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	g := &labGuest{lines: make(chan string, 1000), ended: make(chan error, 1)}
	go func() {
		defer close(g.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			fmt.Println(s.Text()) // which tells the outside that something goes on
			select {
			case g.lines <- s.Text():
			default: // nobody waits for them any more
			}
		}
		g.ended <- c.Wait()
	}()
	return g
}

// wait returns what a line says behind a text.
func (g *labGuest) wait(t *testing.T, text string) string {
	t.Helper()
	for timeout := time.After(4 * time.Minute); ; {
		select {
		case line, ok := <-g.lines:
			if _, rest, found := strings.Cut(line, text); found {
				return strings.TrimSpace(rest)
			}
			if !ok {
				t.Fatalf("the guest ended without %q", text)
			}
		case <-timeout:
			t.Fatalf("the guest doesn't say %q", text)
		}
	}
}

func (g *labGuest) ends(t *testing.T) {
	t.Helper()
	select {
	case err := <-g.ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(4 * time.Minute):
		t.Error("the guest doesn't end")
	}
}

// devicesGuestRuns runs a guest with all that there is.
func devicesGuestRuns(t *testing.T, dir, disk string) {
	pmem := filepath.Join(dir, "pmem")
	content := bytes.Repeat([]byte("persistent memory "), 100_000)
	if err := os.WriteFile(pmem, content, 0o600); err != nil {
		t.Fatal(err)
	}
	sockets, ctl := filepath.Join(dir, "v"), filepath.Join(dir, "c")
	l, err := net.Listen("unix", sockets+"_1024")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go answer(l)
	g := startGuest(t, monitorCommand(t, "devices", "--cpus", "2", "--memory", "256MiB,max=768MiB", "--disk", disk,
		"--pmem", pmem, "--vsock", "cid=3,socket="+sockets, "--control", ctl))
	g.wait(t, "guest: 2 CPUs, 2 work")
	if got, want := g.wait(t, "guest: image has written"), fmt.Sprintf("%x", md5.Sum(bytes.Repeat([]byte("x"), 8<<20))); got != want {
		t.Errorf("the image has %s instead of %s", got, want)
	}
	want := fmt.Sprintf("%x", md5.Sum(append(content, make([]byte, 2<<20-len(content))...)))
	for _, which := range []string{"guest: pmem ", "guest: pmem still "} {
		if got := g.wait(t, which); got != want {
			t.Errorf("%s%s instead of %s", which, got, want)
		}
	}
	if b, err := os.ReadFile(pmem); err != nil || !bytes.Equal(b, content) {
		t.Errorf("the guest has written to its file: %v", err)
	}
	g.wait(t, "peer: connect to port 9 of the host: connection reset by peer")
	if got := g.wait(t, "guest: the host says "); got != `"HELLO FROM THE GUEST"` {
		t.Errorf("the host said %s", got)
	}
	g.wait(t, "guest: listens")
	if err := echoed(sockets); err != nil {
		t.Error(err)
	}
	memoryMoves(t, g, ctl)
	g.ends(t)
}

// answer answers who connects, with what they say in capitals.
func answer(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		b, _ := io.ReadAll(c)
		_, _ = c.Write(bytes.ToUpper(b))
		c.Close()
	}
}

// echoed sends a mebibyte to port 52 of the guest, which gives it back.
func echoed(path string) error {
	c, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := io.WriteString(c, "CONNECT 52\n"); err != nil {
		return err
	}
	in := bufio.NewReader(c)
	if line, err := in.ReadString('\n'); err != nil || !strings.HasPrefix(line, "OK ") {
		return fmt.Errorf("the guest's port answers %q: %w", line, err)
	}
	data := bytes.Repeat([]byte("back and forth! "), 1<<16)
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(data)
		sent <- errors.Join(err, c.(*net.UnixConn).CloseWrite())
	}()
	got, err := io.ReadAll(in)
	if err := errors.Join(err, <-sent); err != nil {
		return err
	}
	if !bytes.Equal(got, data) {
		return fmt.Errorf("of %d bytes came back %d, or others", len(data), len(got))
	}
	return nil
}

// memoryMoves has the guest get memory and give it back, and ends it.
func memoryMoves(t *testing.T, g *labGuest, ctl string) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	c, err := control.Dial(ctx, ctl)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, step := range []struct {
		size, plugged uint64
		enough        func(kib int) bool
	}{
		{512 << 20, 256 << 20, func(kib int) bool { return kib > 400<<10 }},
		{256 << 20, 0, func(kib int) bool { return kib < 256<<10 }},
		{384 << 20, 128 << 20, func(kib int) bool { return kib > 300<<10 }},
	} {
		if err := c.SetMemory(ctx, control.SetMemory{Bytes: step.size, Wait: 3 * time.Minute}); err != nil {
			t.Fatal(err)
		}
		if s, err := c.Status(ctx); err != nil || s.Plugged != step.plugged || s.Memory != 256<<20 || s.Pluggable != 512<<20 {
			t.Errorf("%+v, %v", s, err)
		}
		for enough := false; !enough; {
			var kib int
			if _, err := fmt.Sscan(g.wait(t, "guest: memory "), &kib); err != nil {
				t.Fatal(err)
			}
			enough = step.enough(kib)
		}
	}
	if err := c.Stop(ctx); err != nil {
		t.Error(err)
	}
}
