package uml

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cleave-project/cleave/agent"
	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/enginetest"
)

// hang is how long tests wait for what must come.
const hang = 2 * time.Minute

var serial atomic.Uint32

// testGuest is one that a test has started.
type testGuest struct {
	*testing.T
	e    *testEngine
	spec *engine.Spec
	exit chan engine.Exit
}

func (e *testEngine) spec(t *testing.T, script string) *engine.Spec {
	t.Helper()
	n := serial.Add(1)
	return &engine.Spec{
		ID: fmt.Sprintf("guestgues%c", 'a'+n%26), Name: "guest", Hostname: "box", Image: image(),
		Root:    engine.Root{Dir: t.TempDir(), Size: 64 * api.MiB},
		Proc:    engine.Process{Args: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/bin"}},
		UIDBase: 0x60000000 + n<<16, IDCount: 1 << 16, Machine: hardware(),
	}
}

// await returns where the guest's end comes to.
func (e *testEngine) await(id string) chan engine.Exit {
	e.watch.Do(func() {
		go func() { // ends with the engine
			for x := range e.Exits() {
				e.endOf(x.ID) <- x
			}
		}()
	})
	return e.endOf(id)
}

func (e *testEngine) endOf(id string) chan engine.Exit {
	c, _ := e.ends.LoadOrStore(id, make(chan engine.Exit, 10))
	return c.(chan engine.Exit)
}

// start starts a guest, of which nothing is left after the test.
func (e *testEngine) start(t *testing.T, spec *engine.Spec) *testGuest {
	t.Helper()
	g := &testGuest{T: t, e: e, spec: spec, exit: e.await(spec.ID)}
	ctx, cancel := context.WithTimeout(t.Context(), hang)
	defer cancel()
	if _, err := e.Start(ctx, spec); err != nil {
		t.Fatalf("%v\n%s\n%s", err, api.AsError(err).Hint, g.log())
	}
	t.Cleanup(func() {
		if err := e.Forget(context.Background(), spec.ID); err != nil {
			t.Error(err)
		}
	})
	return g
}

func (g *testGuest) log() string {
	g.Helper()
	return enginetest.Log(g.T, g.e, g.spec.ID)
}

// ends waits for the guest's end.
func (g *testGuest) ends() api.ExitStatus {
	g.Helper()
	select {
	case x := <-g.exit:
		return x.Status
	case <-time.After(hang):
		g.Fatalf("it doesn't end; it wrote %s", g.log())
	}
	return api.ExitStatus{}
}

// exec runs a command in the guest.
func (g *testGuest) exec(script string) (string, int) {
	g.Helper()
	code := 0
	out, err := g.try(script + " 2>&1; echo exit $?")
	if err != nil {
		g.Fatal(err)
	}
	out, exit, _ := strings.Cut(out, "exit ")
	if _, err := fmt.Sscan(exit, &code); err != nil {
		g.Fatalf("output %q: %v", out, err)
	}
	return strings.TrimSpace(out), code
}

// try is exec for a guest that may not answer.
func (g *testGuest) try(script string) (string, error) {
	ctx, cancel := context.WithTimeout(g.Context(), hang)
	defer cancel()
	conn, err := g.e.Agent(ctx, g.spec.ID)
	if err != nil {
		return "", err
	}
	c, err := agent.Dial(ctx, conn)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	x, err := c.Exec(ctx, agent.ExecRequest{Command: []string{"/bin/sh", "-c", script}})
	if err != nil {
		return "", err
	}
	defer x.Close()
	out, err := io.ReadAll(x.Stdout())
	if err == nil {
		_, err = x.Wait(ctx)
	}
	return string(out), err
}

func (g *testGuest) pid() int {
	g.Helper()
	m, err := g.e.Guest(g.spec.ID)
	if err != nil {
		g.Fatal(err)
	}
	return m.PID
}

func TestEndsAreToldApart(t *testing.T) {
	e := newEngine(t)
	for name, test := range map[string]struct {
		script string
		end    func(*testGuest)
		want   string
	}{
		"exit":   {"exit 7", func(*testGuest) {}, "exit"},
		"panic":  {"sleep 1; echo c >/proc/sysrq-trigger; sleep 1000", func(*testGuest) {}, "panic"},
		"crash":  {"sleep 1000", func(g *testGuest) { _ = syscall.Kill(g.pid(), syscall.SIGKILL) }, "crash"},
		"killed": {"sleep 1000", func(g *testGuest) { _ = e.Signal(g.Context(), g.spec.ID, "SIGKILL") }, "killed"},
	} {
		t.Run(name, func(t *testing.T) {
			g := e.start(t, e.spec(t, test.script))
			test.end(g)
			st := g.ends()
			if st.Reason != test.want || test.want == "exit" && st.Code != 7 {
				t.Errorf("%+v, want %s; it wrote %s", st, test.want, g.log())
			}
			if told := strings.Contains(g.log(), "Kernel panic"); told != (test.want == "panic") {
				t.Errorf("it wrote %s", g.log())
			}
		})
	}
}

// The reboot of a system is one within its monitor; its console, agent,
// network and disks go on.
func TestSystemRebootsWithinItsMonitor(t *testing.T) {
	e := newEngine(t)
	spec := e.spec(t, "")
	plug(t, spec)
	spec.System = true
	spec.Proc.Args = []string{"/bin/sh", "-c", "echo boots; trap : TERM; while :; do sleep 1; done"}
	g := e.start(t, spec)
	pid := g.pid()
	if out, _ := g.exec("echo kept >/root/f; sync; hostname"); out != "box" {
		t.Fatalf("output %q", out)
	}
	// It comes back by names that tell nothing of the host.
	if line, _ := g.exec("cat /proc/cmdline"); strings.Contains(line, g.e.opts.Run) ||
		strings.Contains(line, filepath.Dir(shared.agent)) || !strings.Contains(line, "uml_dir=/uml ") {
		t.Errorf("the guest reads %q", line)
	}
	first, _ := g.exec("cat /proc/sys/kernel/random/boot_id")
	_, _ = g.try("reboot -f") // the answer is lost with the kernel
	deadline := time.Now().Add(hang)
	for {
		if time.Now().After(deadline) {
			t.Fatalf("it doesn't come back; it wrote %s", g.log())
		}
		select {
		case x := <-g.exit:
			t.Fatalf("it ended: %+v; it wrote %s", x, g.log())
		case <-time.After(200 * time.Millisecond):
		}
		if again, err := g.try("cat /proc/sys/kernel/random/boot_id"); err == nil && strings.TrimSpace(again) != first {
			break
		}
	}
	if out, _ := g.exec("cat /root/f"); out != "kept" {
		t.Errorf("output %q", out)
	}
	if out, _ := g.exec(echo); out != "1000000" {
		t.Errorf("carried %q", out)
	}
	if now := g.pid(); now != pid {
		t.Errorf("process %d became %d", pid, now)
	}
	if n := strings.Count(g.log(), "boots"); n != 2 {
		t.Errorf("it wrote %q", g.log())
	}
}

// plug gives a guest a port whose other end is in a namespace with a server.
func plug(t *testing.T, spec *engine.Spec) {
	t.Helper()
	outside := exec.Command("sleep", "1000")
	outside.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := outside.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = outside.Process.Kill(); _ = outside.Wait() })
	ns := strconv.Itoa(outside.Process.Pid)
	in := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("nsenter", append([]string{"-t", ns, "-n"}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v: %s", args, err, out)
		}
	}
	mac := net.HardwareAddr{2, 0, 0, 1, 2, 3}
	spec.NICs = []engine.NIC{{
		Name: "eth0", MAC: mac, MTU: 1400, IPv4: netip.MustParsePrefix("10.231.7.2/24"), Gateway4: netip.MustParseAddr("10.231.7.1"),
	}}
	spec.AttachNet = func(_ context.Context, pid int) error {
		in("ip", "link", "add", "p0", "mtu", "1400", "type", "veth", "peer", "name", "eth0", "mtu", "1400", "address", mac.String(), "netns", strconv.Itoa(pid))
		in("ip", "address", "add", "10.231.7.1/24", "dev", "p0")
		in("ip", "link", "set", "p0", "up")
		return nil
	}
	server := exec.Command("nsenter", "-t", ns, "-n", "busybox", "nc", "-ll", "-p", "7", "-e", "/bin/cat")
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Process.Kill(); _ = server.Wait() })
}

// echo sends to the server that plug has started, and counts what comes back.
const echo = "head -c 1000000 /dev/zero | nc -w 20 10.231.7.1 7 | head -c 1000000 | wc -c"

// The interface is the port's, by its MAC and with its MTU, carries more than
// fits a packet, and comes back after it was taken down.
func TestNetworkCarriesAndComesBack(t *testing.T) {
	e := newEngine(t)
	spec := e.spec(t, "sleep 1000")
	plug(t, spec)
	g := e.start(t, spec)
	if out, _ := g.exec("cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu; ls /sys/class/net"); out != "02:00:00:01:02:03\n1400\neth0\nlo" {
		t.Errorf("interfaces: %q", out)
	}
	if out, _ := g.exec(echo); out != "1000000" {
		t.Errorf("carried %q", out)
	}
	if out, code := g.exec("ip link set eth0 down && ip link set eth0 up && ip route add default via 10.231.7.1"); code != 0 {
		t.Errorf("down and up: %q", out)
	}
	if out, _ := g.exec(echo); out != "1000000" {
		t.Errorf("carried %q after it was down", out)
	}
}

// What a guest floods its host with is taken as fast as its host reads, and
// nothing else of it waits.
func TestFloodsAreHeldBack(t *testing.T) {
	e := newEngine(t)
	g := e.start(t, e.spec(t, "yes 0123456789012345678901234567890123456789 & yes out >&2 & yes >/dev/kmsg & sleep 1000"))
	for range 5 {
		if out, code := g.exec("echo alive"); code != 0 || out != "alive" {
			t.Fatalf("output %q, exit %d", out, code)
		}
	}
	// Noise on its agent's line, from inside, ends what goes on there.
	if _, err := g.try("head -c 100000 /dev/urandom >/dev/ttyS3; sleep 1"); err == nil {
		t.Error("noise among the frames went unnoticed")
	}
	if out, code := g.exec("echo alive"); code != 0 || out != "alive" {
		t.Errorf("after noise on the agent's line: %q, exit %d", out, code)
	}
	if err := e.Signal(t.Context(), g.spec.ID, "SIGKILL"); err != nil {
		t.Fatal(err)
	}
	if st := g.ends(); st.Reason != "killed" {
		t.Errorf("%+v", st)
	}
}

// A guest may see nothing of its monitor's file system, nor of others.
func TestGuestDoesNotMountItsMonitorsFiles(t *testing.T) {
	e := newEngine(t)
	g := e.start(t, e.spec(t, "sleep 1000"))
	for _, where := range []string{"", "/", "..", "../../../..", "/../../../usr"} {
		if out, code := g.exec("mkdir -p /mnt && mount -t hostfs none /mnt -o '" + where + "' && ls /mnt/"); code == 0 {
			t.Errorf("%q: mounted %q", where, out)
		}
	}
}

// Memory that is taken from a guest is the host's again, until it is given
// back; what is in use can't be taken.
func TestMemoryIsTakenAndGivenBack(t *testing.T) {
	e := newEngine(t)
	g := e.start(t, e.spec(t, "sleep 1000"))
	free := func() api.Bytes {
		out, _ := g.exec("cat /proc/meminfo")
		n, err := parseFree(out)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	limit := func(n api.Bytes) error {
		return e.Update(t.Context(), g.spec.ID, api.Resources{Memory: n}, g.spec.Root.Dir)
	}
	const much, little = 128 * api.MiB, 80 * api.MiB
	before := free()
	if err := limit(little); err != nil {
		t.Fatal(err)
	}
	if gone := before - free(); gone < 40*api.MiB || gone > 60*api.MiB {
		t.Errorf("%s went of the %s that were taken", gone, much-little)
	}
	if err := limit(little); err != nil {
		t.Errorf("once more: %v", err)
	}
	e = e.reopen(t) // it remembers
	g.e = e
	if err := limit(much); err != nil {
		t.Fatal(err)
	}
	if back := before - free(); back > 8*api.MiB {
		t.Errorf("%s didn't come back", back)
	}
	if out, code := g.exec("head -c 60000000 /dev/zero >/dev/shm/x"); code != 0 {
		t.Fatal(out)
	}
	if err := limit(little); !api.IsCode(err, api.CodeConflict) {
		t.Errorf("what is in use was taken: %v", err)
	}
	if st, err := e.Stats(t.Context(), g.spec.ID); err != nil || st.MemoryLimit != much {
		t.Errorf("limit %s, %v", st.MemoryLimit, err)
	}
	if err := limit(16 * api.MiB); !api.IsCode(err, api.CodeInvalid) {
		t.Errorf("too little: %v", err)
	}
	// The engine that started it is closed, and the other will be.
	if err := e.Forget(t.Context(), g.spec.ID); err != nil {
		t.Error(err)
	}
}

func FuzzParseFree(f *testing.F) {
	f.Add("MemTotal: 1 kB\nMemFree:   73 kB\n")
	f.Fuzz(func(t *testing.T, text string) {
		if n, err := parseFree(text); n < 0 || err != nil && n != 0 {
			t.Errorf("%d, %v", n, err)
		}
	})
}

// A root disk that was given a larger size has it at the guest's next start.
func TestDiskThatGrewIsUsedWholeAtTheNextStart(t *testing.T) {
	e := newEngine(t)
	spec := e.spec(t, "sleep 1000")
	room := func(g *testGuest) (mib int) {
		out, _ := g.exec("df -m / | tail -n 1 | awk '{print $2}'")
		if _, err := fmt.Sscan(out, &mib); err != nil {
			t.Fatalf("%q: %v", out, err)
		}
		return mib
	}
	g := e.start(t, spec)
	if n := room(g); n < 40 || n > 64 {
		t.Fatalf("%d MiB at first", n)
	}
	if out, code := g.exec("echo kept >/root/f && sync"); code != 0 {
		t.Fatal(out)
	}
	if err := e.Signal(t.Context(), spec.ID, "SIGKILL"); err != nil {
		t.Fatal(err)
	}
	g.ends()
	larger := e.spec(t, "sleep 1000")
	larger.Root = spec.Root
	larger.Root.Size = 256 * api.MiB
	g = e.start(t, larger)
	if n := room(g); n < 180 || n > 256 {
		t.Errorf("%d MiB of 256", n)
	}
	if out, _ := g.exec("cat /root/f"); out != "kept" {
		t.Errorf("output %q", out)
	}
}
