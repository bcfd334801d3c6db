package jail

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine/internal/seccomp"
)

// TestMain is the monitor's process as well: the test binary stands for the
// agent, and for programs that a monitor could be.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == Arg {
		runtime.LockOSThread()
		fmt.Fprintln(os.Stderr, Main())
		os.Exit(1)
	}
	os.Exit(m.Run())
}

const base = 5 << 24

var noTrace = []string{"ptrace", "process_vm_readv"}

// wall starts a process and builds a wall around what spec says.
func wall(t *testing.T, spec Spec, out io.Writer) (*exec.Cmd, error) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, who builds walls")
	}
	var err error
	if spec.Seccomp == nil {
		if spec.Seccomp, err = seccomp.Filter(nil, noTrace...); err != nil {
			t.Fatal(err)
		}
	}
	spec.UIDBase, spec.Tmp = base, 16*api.MiB
	w, err := New(spec)
	if err != nil {
		return nil, err
	}
	defer w.Close()
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: base, Size: 1 << 16}}
	// As the keeper does it: output by a FIFO of the guest's.
	fifo := filepath.Join(t.TempDir(), "out")
	if err := unix.Mkfifo(fifo, 0o620); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(fifo, base, base); err != nil {
		t.Fatal(err)
	}
	// Two openings: that of a process is blocking.
	end, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{"cleave-agent", Arg}, Env: []string{"GOMAXPROCS=1"}, Dir: "/",
		Stdout: theirs, Stderr: theirs, ExtraFiles: w.Files(),
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags: CloneFlags, UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
			Credential: &syscall.Credential{}, Setsid: true,
		},
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	copied := make(chan struct{})
	go func() { // ends when the FIFO is closed below
		defer close(copied)
		io.Copy(out, end)
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		end.Close()
		<-copied
	})
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	return cmd, w.Build(ctx)
}

// inside runs a script as monitor and returns what it wrote.
func inside(t *testing.T, spec Spec, script string) string {
	t.Helper()
	if _, err := os.Stat("/usr/bin/busybox"); err != nil {
		t.Skipf("needs a busybox: %v (install busybox-static)", err)
	}
	spec.Program.Exe, spec.Program.Args = "/usr/bin/busybox", []string{"sh", "-c", script + "\necho the end"}
	spec.Program.Env = []string{"PATH=/usr/bin:/usr/sbin"}
	r, w := io.Pipe()
	if _, err := wall(t, spec, w); err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	buf := make([]byte, 4096)
	timer := time.AfterFunc(60*time.Second, func() { r.Close() })
	defer timer.Stop()
	for !strings.HasSuffix(got.String(), "the end\n") {
		n, err := r.Read(buf)
		got.Write(buf[:n])
		if err != nil {
			t.Fatalf("%v after %q", err, got.String())
		}
	}
	go io.Copy(io.Discard, r)
	return strings.TrimSuffix(got.String(), "the end\n")
}

func TestMonitorSeesOnlyWhatItIsShown(t *testing.T) {
	secret, shown, mine := t.TempDir(), t.TempDir(), t.TempDir()
	for _, d := range []string{secret, shown, mine} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(d, "f"), []byte("content"), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(mine, base+ID, base+ID); err != nil {
		t.Fatal(err)
	}
	out := inside(t, Spec{Show: []string{shown}, Write: []string{mine}, Links: map[string]string{"/short": shown + "/f"}}, fmt.Sprintf(`
		ls -x /
		ls -x /dev
		for f in /etc/shadow /etc/passwd /root /home /var /run /sys/kernel /proc/1/root/../etc/hostname %[1]s/f; do ls $f >/dev/null 2>&1 && echo "SEES $f"; done
		for f in / /usr /dev /proc/sys/kernel/hostname /proc/self/oom_score_adj %[2]s/f %[2]s/x; do ( echo x > $f ) 2>/dev/null && echo "WRITES $f"; done
		mkdir /usr/x /x 2>/dev/null && echo WRITES
		cat /short
		echo new > %[3]s/x && echo wrote
		echo x > /tmp/x && cat /tmp/x
		hostname`, secret, shown, mine))
	if strings.Contains(out, "SEES") || strings.Contains(out, "WRITES") || !strings.Contains(out, "contentwrote\nx\nmonitor\n") {
		t.Errorf("output:\n%s", out)
	}
	if !strings.Contains(out, "fd       full     null     random   urandom  zero") {
		t.Errorf("devices:\n%s", out)
	}
	if _, err := os.Stat(filepath.Join(mine, "x")); err != nil {
		t.Error(err)
	}
}

func TestMonitorHasNoRights(t *testing.T) {
	out := inside(t, Spec{}, `
		id -u; id -g; id -G
		grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status
		for c in "mount -t tmpfs x /tmp" "umount /proc" "chroot / true" "unshare -U true" "mknod /tmp/m c 1 3" "hostname x" "chown 0 /tmp" "setpriv --reuid 0 true" "kill -0 0x"; do $c 2>/dev/null && echo "MAY $c"; done
		ls /proc | grep -c '^[0-9]'`)
	want := "1000\n1000\n1000\nCapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n"
	if !strings.HasPrefix(out, want) || strings.Contains(out, "MAY") {
		t.Errorf("output:\n%s", out)
	}
}

func TestMonitorHasNoDescriptorsAndNoNetworkButItsOwn(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	here, there := os.NewFile(uintptr(fds[0]), "here"), os.NewFile(uintptr(fds[1]), "there")
	defer here.Close()
	defer there.Close()
	l, err := net.Listen("unix", "@cleave-jail-test")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	spec := Spec{Program: Program{Files: []File{{File: f}, {File: there}, {Std: 1, Access: os.O_WRONLY}}}}
	out := inside(t, spec, `
		cd /proc/self/fd; for n in *; do readlink $n | sed "s/\[.*//; s/^/$n /"; done
		cat /proc/net/dev | grep -c ':'
		cat /proc/net/unix | grep -c cleave-jail
		echo by the socket >&5; echo by the stream >&6
		grep flags /proc/self/fdinfo/6`)
	for _, want := range []string{"4 /dev/null\n", "5 socket:\n", "by the stream\n", "flags:\t0100001\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q", want)
		}
	}
	// One network device, the loopback, which is down; descriptors 3 and 7 are
	// the shell's own for reading its directory.
	if !strings.Contains(out, "\n1\n0\n") || strings.Contains(out, "\n8 ") || strings.Count(out, "socket:") != 1 {
		t.Errorf("too much:\n%s", out)
	}
	buf := make([]byte, 64)
	if n, err := here.Read(buf); err != nil || string(buf[:n]) != "by the socket\n" {
		t.Errorf("read %q, error %v", buf[:n], err)
	}
}

func TestOnlyATracerMayTrace(t *testing.T) {
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skipf("needs strace: %v", err)
	}
	const script = `strace -o /dev/null true && echo traced`
	if out := inside(t, Spec{}, script); strings.Contains(out, "traced\n") {
		t.Errorf("output %q", out)
	}
	filter, err := seccomp.Filter(nil)
	if err != nil {
		t.Fatal(err)
	}
	if out := inside(t, Spec{Seccomp: filter}, script); !strings.Contains(out, "traced\n") {
		t.Errorf("output %q", out)
	}
}

func TestProgramBesideIsAnotherUserAndEndsWithTheMonitor(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	here, there := os.NewFile(uintptr(fds[0]), "here"), os.NewFile(uintptr(fds[1]), "there")
	defer here.Close()
	spec := Spec{
		Program: Program{Files: []File{{Std: 1, Access: os.O_RDWR}}},
		Beside: &Program{
			Exe: "/usr/bin/busybox", Args: []string{"sh", "-c", "(id -u; echo /proc/self/fd/*) >&4; echo beside >&2; sleep 1000"},
			Files: []File{{File: there}},
		},
	}
	out := inside(t, spec, `sleep 0.2; kill -0 2 2>/dev/null && echo MAY; test -e /proc/self/fd/5 && echo MORE`)
	there.Close()
	if strings.Contains(out, "MAY") || strings.Contains(out, "MORE") {
		t.Errorf("output %q", out)
	}
	b, err := io.ReadAll(here) // its end is the program's
	if err != nil || !strings.HasPrefix(string(b), "1001\n/proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 /proc/self/fd/3 /proc/self/fd/4\n") {
		t.Errorf("read %q, error %v", b, err)
	}
}

func TestProgramThatIsMissingIsSaidSo(t *testing.T) {
	for name, p := range map[string]Program{
		"nowhere":     {Exe: "/usr/bin/no-such-monitor", Args: []string{"x"}},
		"not shown":   {Exe: "/etc/hosts", Args: []string{"x"}},
		"no program":  {Exe: "/usr/share/doc", Args: []string{"x"}},
		"no argument": {Exe: "/usr/bin/busybox"},
	} {
		var out bytes.Buffer
		_, err := wall(t, Spec{Program: p}, &out)
		var e *api.Error
		if err == nil || errors.Is(err, io.EOF) || name != "no argument" && (!errors.As(err, &e) || e.Code != api.CodeUnsupported || !strings.Contains(err.Error(), p.Exe)) {
			t.Errorf("%s: error %v, output %q", name, err, out.String())
		}
	}
	if _, err := New(Spec{Program: Program{Exe: "/usr/bin/busybox", Args: []string{"x"}}, Devices: []string{"no-such-device"}}); !api.IsCode(err, api.CodeUnsupported) {
		t.Errorf("error %v", err)
	}
}

func TestProcessThatDiesSaysNothing(t *testing.T) {
	w, err := New(Spec{Program: Program{Exe: "/usr/bin/busybox", Args: []string{"x"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	// Nobody has the other end.
	if err := w.Build(t.Context()); err == nil || api.IsCode(err, api.CodeTimeout) {
		t.Errorf("error %v", err)
	}
}
