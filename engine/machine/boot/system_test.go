package boot_test

import (
	"strings"
	"testing"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine/machine/vitals"
)

// newSystem is a guest with busybox's init, as small an operating system as
// there is.
func newSystem(t testing.TB) *guest {
	g := newGuest(t, "")
	g.boot.System = true
	g.boot.Process = vitals.Process{Args: []string{"/sbin/init"}, Env: []string{"GREETING=hello"}, TTY: true}
	return g
}

func TestSystemHasItsInitAndTheAgentBeside(t *testing.T) {
	g := newSystem(t)
	g.boot.PIDs = 40
	g.start()
	c := g.client(g.session())
	g.wait(&g.console, "sysinit")
	for script, want := range map[string]string{
		"cat /proc/1/comm": "init",
		"tr '\\0' '\\n' < /proc/1/environ | sort | tr '\\n' ' '":                                               "GREETING=hello TERM=linux",
		"awk '$2==\"/run\" {print $3}' /proc/mounts":                                                           "tmpfs",
		"cat /etc/hostname; id -u; cat /proc/self/comm":                                                        "guest\n0\ncat",
		"for i in $(seq 60); do sleep 5 & done 2>&1 | grep -c fork || true; kill $(jobs -p) 2>/dev/null; true": "",
	} {
		got := strings.TrimSpace(g.exec(c, script))
		if want == "" {
			if got == "" || got == "0" {
				t.Errorf("%s: %q: there is no limit", script, got)
			}
		} else if got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	if s := g.status(); s.Phase != vitals.PhaseRunning {
		t.Errorf("status %+v", s)
	}
	if err := c.PowerOff(g.context(), false); err != nil {
		t.Fatal(err)
	}
	if s := g.end(); s.Phase != vitals.PhaseEnding || s.Boots != 1 || s.Exit != (api.ExitStatus{}) {
		t.Errorf("status %+v", s)
	}
	if s := g.console.String(); !strings.Contains(s, "shutdown") {
		t.Errorf("it went down without its own scripts: %q", s)
	}
}

// The session ends and the agent is there again.
func TestSystemMayReboot(t *testing.T) {
	g := newSystem(t)
	g.start()
	s := g.session()
	c := g.client(s)
	g.exec(c, "echo kept > /root/kept; sync")
	if err := c.PowerOff(g.context(), true); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.Closed():
	case <-g.context().Done():
		t.Fatal("the session goes on")
	}
	s.Close()
	c = g.client(g.session())
	if got := g.exec(c, "cat /root/kept"); got != "kept\n" {
		t.Errorf("got %q", got)
	}
	if s := g.status(); s.Phase != vitals.PhaseRunning || s.Boots != 2 || s.Exit.Reason != "" {
		t.Errorf("status %+v", s)
	}
}

// One that comes to its init and panics later is reset and runs on, as a
// computer does; one that never comes to its init ends.
func TestSystemIsResetAfterAPanic(t *testing.T) {
	g := newSystem(t)
	g.start()
	g.exec(g.client(g.session()), "(sleep 1; echo c > /proc/sysrq-trigger) >/dev/null 2>&1 &")
	<-g.ended // User Mode Linux ends where a machine is reset
	g.run()
	g.client(g.session())
	if s := g.status(); s.Phase != vitals.PhaseRunning || s.Boots != 2 || s.Exit.Reason != "panic" {
		t.Errorf("status %+v", s)
	}
}

func TestSystemWithoutInitSaysSo(t *testing.T) {
	for _, name := range []string{"/sbin/no-such-init", "no-such-init", "/etc/passwd"} {
		g := newSystem(t)
		g.boot.Process.Args = []string{name}
		s := g.start().end()
		if s.Phase != vitals.PhaseEnded || s.Error == nil || !strings.Contains(s.Error.Message, name) || s.Exit.Code < 126 {
			t.Errorf("%s: status %+v, %v", name, s, s.Error)
		}
	}
}

// The agent can be killed by the guest's root: the guest doesn't care, and its
// host sees the end of what it was asked.
func TestSystemLivesOnWithoutItsAgent(t *testing.T) {
	g := newSystem(t)
	g.start()
	c := g.client(g.session())
	_, _ = c.Exec(g.context(), execRequest("sleep 1; pkill -9 -f companion; sleep 5; poweroff"))
	if s := g.end(); s.Boots != 1 {
		t.Errorf("status %+v", s)
	}
}
