package agent_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/agent"
	"github.com/cleave-project/cleave/agent/guest"
	"github.com/cleave-project/cleave/agent/wire"
	"github.com/cleave-project/cleave/api"
)

func TestInitReturnsTheEntryPointsStatus(t *testing.T) {
	for _, tc := range []struct {
		script string
		code   int
	}{
		{"exit 0", 0},
		{"exit 7", 7},
		{"kill -KILL $$", 137},
		{"kill -SEGV $$", 139},
		{"sleep 1000 & exit 3", 3}, // it doesn't wait for the others
	} {
		t.Run(tc.script, func(t *testing.T) {
			g := startInit(t, guest.Process{Args: []string{"sh", "-c", tc.script}}, nil)
			if g.start != nil {
				t.Fatal(g.start)
			}
			if code := g.exit(t); code != tc.code {
				t.Errorf("exit %d", code)
			}
		})
	}
}

func TestInitReportsWhyTheEntryPointDidNotStart(t *testing.T) {
	for _, tc := range []struct {
		p    guest.Process
		code int
		text string
	}{
		{guest.Process{Args: []string{"nothing-such"}}, 127, "nothing-such"},
		{guest.Process{Args: []string{"/etc"}}, 126, "/etc"},
		{guest.Process{Args: []string{"true"}, User: "nobody-such"}, 126, "nobody-such"},
		{guest.Process{Args: []string{"true"}, WorkDir: "/no/where"}, 126, "/no/where"},
		{guest.Process{}, 126, "no command"},
	} {
		t.Run(tc.text, func(t *testing.T) {
			g := startInit(t, tc.p, nil)
			if g.start == nil || !strings.Contains(g.start.Error(), tc.text) {
				t.Errorf("reported %v", g.start)
			}
			if code := g.exit(t); code != tc.code {
				t.Errorf("exit %d", code)
			}
		})
	}
}

func TestInitForwardsSignals(t *testing.T) {
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGWINCH, 37} {
		t.Run(sig.String(), func(t *testing.T) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			script := fmt.Sprintf("trap 'exit 42' %d; echo ready; while :; do sleep 0.01; done", int(sig))
			g := startInit(t, guest.Process{Args: []string{"bash", "-c", script}}, func(c *exec.Cmd) { c.Stdout = w })
			w.Close()
			if _, err := bufio.NewReader(r).ReadString('\n'); err != nil {
				t.Fatal(err)
			}
			if err := g.cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			if code := g.exit(t); code != 42 {
				t.Errorf("exit %d", code)
			}
		})
	}
}

func TestInitEnvironmentIsInheritedByCommands(t *testing.T) {
	p := guest.Process{Args: []string{"sleep", "1000"}, Env: []string{"FROM=image", "OVER=image"}, WorkDir: "/usr"}
	c := startInit(t, p, nil).dial(t)
	req := sh("pwd; echo $FROM $OVER $HOME; tr '\\0' '\\n' </proc/1/environ | grep -c ^GOMAXPROCS")
	req.Env = []string{"OVER=request"}
	got := command(t, c, req, nil)
	if got.stdout != "/usr\nimage request /root\n1\n" {
		t.Errorf("got %+v", got)
	}
	if env := command(t, c, agent.ExecRequest{Command: []string{"env"}}, nil); strings.Contains(env.stdout, "GOMAXPROCS") {
		t.Errorf("the agent's own environment shows: %s", env.stdout)
	}
}

// A descriptor that the agent was started with (here those of the test's
// listener and report) must not reach anything that it starts.
func TestNoDescriptorReachesTheGuest(t *testing.T) {
	const list = "ls /proc/self/fd | tr '\n' ' '; umask" // ls has one for the directory
	var main strings.Builder
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	g := startInit(t, guest.Process{Args: []string{"sh", "-c", list + "; exec sleep 1000 >/dev/null"}}, func(c *exec.Cmd) { c.Stdout = w })
	w.Close()
	if _, err := io.Copy(&main, bufio.NewReader(io.LimitReader(r, 13))); err != nil {
		t.Fatal(err)
	}
	const want = "0 1 2 3 0022\n"
	if main.String() != want {
		t.Errorf("the entry point has %q", main.String())
	}
	for _, c := range []*agent.Client{g.dial(t), startServe(t).dial(t)} {
		if got := command(t, c, sh(list), nil); got.stdout != want {
			t.Errorf("a command has %q", got.stdout)
		}
	}
}

func TestInitRunsAsTheRequestedUser(t *testing.T) {
	p := guest.Process{Args: []string{"sh", "-c", "id -u; id -g; echo again >/dev/stdout; exec sleep 1000"}, User: "daemon"}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	g := startInit(t, p, func(c *exec.Cmd) { c.Stdout = w })
	w.Close()
	expect(t, bufio.NewReader(r), "1\n1\nagain\n")
	c := g.dial(t)
	for user, want := range map[string]string{
		"":          "1:1:1:/usr/sbin",
		"root":      "0:0:0:/root",
		"4321":      "4321:0:0:/",
		"4321:99":   "4321:99:99:/",
		"nobody:5":  "65534:5:5:/nonexistent",
		"0:daemon":  "0:1:1:/root",
		"65534:tty": "65534:5:5:/nonexistent",
	} {
		req := sh("echo $(id -u):$(id -g):$(id -G):$HOME; echo x >/dev/stderr")
		req.User = user
		got := command(t, c, req, nil)
		if got.stdout != want+"\n" || got.stderr != "x\n" {
			t.Errorf("user %q: %+v, want %s", user, got, want)
		}
	}
}

// Two hundred commands at once, each of which leaves orphans behind that end
// at the same time: every status must reach its own exec, and no zombie stays.
func TestInitReapsOrphansWithoutTakingStatuses(t *testing.T) {
	g := startInit(t, guest.Process{Args: []string{"sleep", "1000"}}, nil)
	clients := []*agent.Client{g.dial(t), g.dial(t)}
	var all sync.WaitGroup
	for i := range 200 {
		all.Go(func() {
			code := i % 100
			req := sh(fmt.Sprintf("(true & (sleep 0.0%d & true) & ) & (false &) ; exit %d", i%9, code))
			r, err := tryCommand(testContext(t), clients[i%len(clients)], req, nil)
			if err != nil || r.code != code {
				t.Errorf("exec %d: exit %d, want %d, %v", i, r.code, code, err)
			}
		})
	}
	all.Wait()
	r := command(t, clients[0], sh("sleep 0.3; grep -l '^State:.Z' /proc/[0-9]*/status; true"), nil)
	if r.stdout != "" {
		t.Errorf("zombies: %s", r.stdout)
	}
}

func TestInitGivesTheTerminalToTheEntryPoint(t *testing.T) {
	master, slave := openPTY(t)
	g := startInit(t, guest.Process{Args: []string{"sh", "-c", "echo hello >/dev/tty; exec sleep 1000"}, TTY: true}, func(c *exec.Cmd) {
		c.Stdin, c.Stdout, c.Stderr = slave, slave, slave
	})
	slave.Close()
	if g.start != nil {
		t.Fatal(g.start)
	}
	expect(t, bufio.NewReader(master), "hello")
	io.WriteString(master, "\x03") // to the foreground group
	if code := g.exit(t); code != 130 {
		t.Errorf("exit %d", code)
	}
}

func openPTY(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	conn, err := master.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	conn.Control(func(fd uintptr) {
		must(unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0))
		var n int
		n, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		must(err)
		slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
		must(err)
	})
	return master, slave
}

// In a user namespace the agent has the rights of its guest's root only, and
// users other than root need them.
func TestInitInAUserNamespace(t *testing.T) {
	g := startInit(t, guest.Process{Args: []string{"sleep", "1000"}, User: "nobody"}, func(c *exec.Cmd) {
		c.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 65536}}
		c.SysProcAttr.UidMappings, c.SysProcAttr.GidMappings = ids, ids
		c.SysProcAttr.GidMappingsEnableSetgroups = true
		c.SysProcAttr.Credential = &syscall.Credential{}
	})
	if g.start != nil {
		t.Fatal(g.start)
	}
	c := g.dial(t)
	if r := command(t, c, agent.ExecRequest{Command: []string{"id", "-u"}}, nil); r.stdout != "65534\n" {
		t.Errorf("got %+v", r)
	}
	req := agent.ExecRequest{Command: []string{"id", "-u"}, User: "100000"}
	if _, err := tryCommand(testContext(t), c, req, nil); !api.IsCode(err, api.CodeInvalid) {
		t.Errorf("an id outside of the namespace: %v", err)
	}
}

func TestPingTellsOfTheAgent(t *testing.T) {
	g := startInit(t, guest.Process{Args: []string{"sleep", "1000"}}, nil)
	info, err := g.dial(t).Ping(t.Context())
	if err != nil || info.PID != 1 || info.Version != wire.Version || info.Uptime < 0 {
		t.Errorf("got %+v, %v", info, err)
	}
}
