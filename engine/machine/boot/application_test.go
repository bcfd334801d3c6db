package boot_test

import (
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/agent"
	"github.com/cleave-project/cleave/agent/link"
	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine/machine/vitals"
)

func TestApplicationRunsAndItsEndIsKnown(t *testing.T) {
	g := newGuest(t, "echo out; echo err >&2; cat /etc/hostname /etc/hosts; exit 7").start()
	got := g.end()
	want := vitals.Status{Phase: vitals.PhaseEnded, Boots: 1, Exit: api.ExitStatus{Code: 7, Reason: "exit"}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if got, want := g.stdout.String(), "out\nguest\n127.0.0.1 localhost guest\n"; got != want {
		t.Errorf("stdout %q, want %q", got, want)
	}
	if got := g.stderr.String(); got != "err\n" {
		t.Errorf("stderr %q", got)
	}
	if got := g.console.String(); strings.Contains(got, "cleave:") {
		t.Errorf("the console says %q", got)
	}
}

// Output of any size arrives before the machine is off, and a signal's name.
func TestApplicationsLastWordsArrive(t *testing.T) {
	g := newGuest(t, "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; echo last; kill -SEGV $$").start()
	got := g.end()
	if got.Exit.Code != 139 || got.Exit.Signal != "SIGSEGV" {
		t.Errorf("status %+v", got)
	}
	if out := g.stdout.String(); !strings.HasPrefix(out, "line 0\nline 1\n") || !strings.HasSuffix(out, "line 2999\nlast\n") || strings.Count(out, "\n") != 3001 {
		t.Errorf("%d lines", strings.Count(out, "\n"))
	}
}

func TestApplicationThatCannotStartSaysWhy(t *testing.T) {
	g := newGuest(t, "")
	g.boot.Process.Args = []string{"no-such-program"}
	got := g.start().end()
	if got.Phase != vitals.PhaseEnded || got.Exit.Code != 127 || got.Error == nil || got.Error.Code != api.CodeNotFound || got.Error.Field != api.FieldCommand || !strings.Contains(got.Error.Message, "no-such-program") {
		t.Errorf("status %+v, %+v", got, got.Error)
	}
}

// What the guest is made of, seen from inside, in one boot.
func TestApplicationHasWhatItWasTold(t *testing.T) {
	g := newGuest(t, "read line; echo got $line; cat; exec sleep 1000")
	volume := filepath.Join(g.dir, "volume")
	if err := ext4(volume, 16<<20); err != nil {
		t.Fatal(err)
	}
	g.disks = []string{volume, volume + "2"}
	if err := ext4(volume+"2", 16<<20); err != nil {
		t.Fatal(err)
	}
	b := &g.boot
	b.Process.Stdin = true
	b.Process.User = "nobody"
	b.Mounts = []vitals.Mount{{Disk: "volume-0", Target: "/data/deep"}, {Disk: "volume-1", Target: "/ro", ReadOnly: true}}
	b.Sysctls = [][2]string{{"net/ipv4/ip_forward", "1"}}
	b.Limits = []vitals.Rlimit{{Resource: unix.RLIMIT_NOFILE, Soft: 1000, Hard: 2000}}
	b.ShmSize = 3 << 20
	b.PIDs = 20
	b.DropCaps = 1<<unix.CAP_NET_RAW | 1<<unix.CAP_SYS_MODULE
	b.NoNewPrivs = true
	g.start()
	c := g.client(g.session())
	if err := c.Started(g.context()); err != nil {
		t.Fatal(err)
	}
	in, err := c.Input(g.context())
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(in, "this\nand that\n")
	in.Close()
	if err := in.Wait(g.context()); err != nil {
		t.Error(err)
	}
	for script, want := range map[string]string{
		"id -u":                             "65534",
		"cat /proc/sys/net/ipv4/ip_forward": "1",
		"ulimit -n; ulimit -Hn":             "1000\n2000",
		"df -k /dev/shm | tail -n 1 | awk '{print $2}'":                                   "3072",
		"cat /sys/fs/cgroup/guest/pids.max":                                               "20",
		"grep CapBnd /proc/self/status | tr -d '\\t'":                                     "CapBnd:" + capsWithout(unix.CAP_NET_RAW, unix.CAP_SYS_MODULE),
		"grep NoNewPrivs /proc/self/status | tr -d '\\t'":                                 "NoNewPrivs:1",
		"hostname; cat /etc/resolv.conf":                                                  "guest\nnameserver 10.0.0.1",
		"awk '$2==\"/data/deep\" || $2==\"/ro\" {print $3, substr($4,1,2)}' /proc/mounts": "ext4 rw\next4 ro",
		"ls -d /dev/fd /dev/stdin /dev/ptmx /dev/pts/ptmx /dev/null | wc -l":              "5",
		"ls -d /init /modules /image /disk 2>/dev/null | wc -l":                           "0",
		"ip link show lo | grep -c UP":                                                    "1",
		"grep -c ' / overlay ' /proc/mounts":                                              "1",
	} {
		if got := strings.TrimSpace(g.exec(c, script)); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	m, err := c.Metrics(g.context())
	if err != nil || m.MemoryTotal < 64<<20 || m.MemoryTotal > 128<<20 || m.Tasks < 2 || m.DiskSize < 16<<20 || m.DiskSize > 32<<20 {
		t.Errorf("metrics %+v, %v", m, err)
	}
	if err := c.SyncClock(g.context(), time.Unix(2_000_000_000, 0)); err != nil {
		t.Error(err)
	}
	if got := g.exec(c, "date +%s"); !strings.HasPrefix(got, "20000000") {
		t.Errorf("the clock says %s", got)
	}
	if err := c.SignalEntry(g.context(), "SIGTERM"); err != nil {
		t.Error(err)
	}
	if got := g.end(); got.Exit.Code != 143 || got.Exit.Signal != "SIGTERM" {
		t.Errorf("status %+v", got)
	}
	if got := g.stdout.String(); got != "got this\nand that\n" {
		t.Errorf("stdout %q", got)
	}
}

// capsWithout is a bounding set of all other capabilities.
func capsWithout(list ...int) string {
	mask := uint64(1)<<(unix.CAP_LAST_CAP+1) - 1
	for _, c := range list {
		mask &^= 1 << c
	}
	return fmt.Sprintf("%016x", mask)
}

func TestApplicationOnATerminal(t *testing.T) {
	g := newGuest(t, "tty; read line; stty size; echo you said $line; read line")
	g.boot.Process.TTY = true
	g.start()
	c := g.client(g.session())
	if err := c.ResizeEntry(g.context(), 132, 43); err != nil {
		t.Fatal(err)
	}
	io.WriteString(g.terminal, "hello\n")
	g.wait(&g.stdout, "43 132\r\nyou said hello\r\n")
	io.WriteString(g.terminal, "\x03")
	if got := g.end(); got.Exit.Code != 130 {
		t.Errorf("status %+v", got)
	}
	if got := g.stdout.String(); !strings.Contains(got, "/dev/pts/0\r\n") {
		t.Errorf("terminal %q", got)
	}
}

// wait waits until something has been written.
func (g *guest) wait(o *output, text string) {
	g.t.Helper()
	for deadline := time.Now().Add(hangGuard); !strings.Contains(o.String(), text); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			g.t.Fatalf("no %q in %q\n%s", text, o.String(), g.console.String())
		}
	}
}

// The root disk is written, and read again; or only read.
func TestRootKeepsWhatIsWritten(t *testing.T) {
	g := newGuest(t, "cat /etc/kept; echo kept > /etc/kept; rm /etc/group; sync")
	g.start().end()
	g.boot.ReadOnlyRoot = true
	g.boot.Process.Args[2] = "cat /etc/kept; ls /etc/group; echo x > /etc/kept || echo refused; echo x > /tmp/x || echo refused"
	g.start().end()
	if got := g.stdout.String(); got != "kept\nrefused\nrefused\n" {
		t.Errorf("stdout %q\nstderr %q", got, g.stderr.String())
	}
	// It was left in good order.
	if err := command("e2fsck", "-fn", g.root); err != nil {
		t.Error(err)
	}
	if err := command("sh", "-c", "! dumpe2fs -h "+g.root+" 2>/dev/null | grep -q needs_recovery"); err != nil {
		t.Error("the journal is to be replayed")
	}
}

func TestMaintenanceRunsTheAgentOnly(t *testing.T) {
	g := newGuest(t, "echo ran")
	g.boot.Maintenance = true
	g.start()
	c := g.client(g.session())
	if got := g.exec(c, "cat /etc/hostname"); got != "guest\n" {
		t.Errorf("got %q", got)
	}
	if err := c.PowerOff(g.context(), false); err != nil {
		t.Error(err)
	}
	if got := g.end(); got.Phase != vitals.PhaseEnded || got.Exit.Reason != "poweroff" || g.stdout.String() != "" {
		t.Errorf("status %+v, output %q", got, g.stdout.String())
	}
}

// A host that is killed in the middle of a frame, or stops reading, and its
// successor.
func TestAgentOutlivesItsHosts(t *testing.T) {
	g := newGuest(t, "exec sleep 1000").start()
	g.loseHosts(func(n int) { g.toGuest.Write([]byte("half a frame")[:n]) })
}

// loseHosts has hosts die in the midst of a command's output, and leave things
// on the line.
func (g *guest) loseHosts(leave func(n int)) *agent.Client {
	g.t.Helper()
	for i := range 5 {
		dead := g.line()
		s, err := link.NewSession(g.context(), dead)
		if err != nil {
			g.t.Fatal(err)
		}
		e, err := g.client(s).Exec(g.context(), agent.ExecRequest{Command: []string{"cat", "/dev/zero"}})
		if err != nil {
			g.t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, e.Stdout(), 100_000); err != nil {
			g.t.Fatal(err)
		}
		dead.Close()
		leave(i * 2)
	}
	c := g.client(g.session())
	for deadline := time.Now().Add(hangGuard); g.exec(c, "pgrep cat | wc -l") != "0\n"; {
		if time.Now().After(deadline) {
			g.t.Fatal("commands of hosts that are gone still run")
		}
	}
	return c
}
