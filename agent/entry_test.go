package agent_test

import (
	"bufio"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/cleave-project/cleave/agent/guest"
	"github.com/cleave-project/cleave/api"
)

func TestMachineRelaysOutputToItsEnd(t *testing.T) {
	for _, tc := range []struct{ script, want string }{
		{"echo out; echo err >&2; exit 7", "out\n[7  exit]"},
		{"kill -SEGV $$", "[139 SIGSEGV exit]"},
		// Whoever is left has no say in when the output ends.
		{"(trap '' TERM HUP; sleep 1000) & seq 20000 | tail -n 1", "20000\n[0  exit]"},
		{"exec >&-; sleep 0.1", "[0  exit]"},
		{"head -c 300000 /dev/zero | tr '\\0' x", strings.Repeat("x", 300000) + "[0  exit]"},
	} {
		g := startMachine(t, guest.Process{Args: []string{"sh", "-c", tc.script}}, nil)
		g.exit(t)
		if got := g.stdout.String(); got != tc.want {
			t.Errorf("%s: %d bytes, %.100q", tc.script, len(got), got)
		}
	}
}

func TestInputOfTheEntryPointComesFromTheAgent(t *testing.T) {
	g := startMachine(t, guest.Process{Args: []string{"cat"}}, nil)
	ctx := testContext(t)
	// A connection that goes away isn't the end of the input.
	c := g.dial(t)
	in, err := c.Input(ctx)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(in, "first ")
	if _, err := c.Ping(ctx); err != nil {
		t.Fatal(err)
	}
	c.Close()
	c = g.dial(t)
	if in, err = c.Input(ctx); err != nil {
		t.Fatal(err)
	}
	text := strings.Repeat("0123456789abcdef", 50_000)
	if _, err := io.WriteString(in, text); err != nil {
		t.Fatal(err)
	}
	in.Close()
	if err := in.Wait(ctx); err != nil {
		t.Error(err)
	}
	g.exit(t)
	if got := strings.TrimPrefix(g.stdout.String(), "first "); got != text+"[0  exit]" {
		t.Errorf("got %d bytes", len(got))
	}
}

func TestInputThatNobodyReadsIsRefused(t *testing.T) {
	g := startMachine(t, guest.Process{Args: []string{"sh", "-c", "exec <&-; sleep 1000"}}, nil)
	c := g.dial(t)
	ctx := testContext(t)
	in, err := c.Input(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = io.WriteString(in, "x")
		time.Sleep(time.Millisecond)
	}
	if !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("write: %v", err)
	}
	if err := in.Wait(ctx); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("wait: %v", err)
	}
	// An entry point whose streams are somebody else's has no input for us.
	if _, err := startInit(t, guest.Process{Args: []string{"sleep", "1000"}}, nil).dial(t).Input(ctx); !api.IsCode(err, api.CodeConflict) {
		t.Errorf("input of a container: %v", err)
	}
}

func TestEntryPointIsSignalled(t *testing.T) {
	p := guest.Process{Args: []string{"sh", "-c", "trap 'exit 5' USR1; while :; do sleep 0.01; done"}}
	for _, start := range []func(testing.TB, guest.Process, func(*exec.Cmd)) *guestProcess{startInit, startMachine} {
		g := start(t, p, nil)
		c := g.dial(t)
		ctx := testContext(t)
		if err := c.Started(ctx); err != nil {
			t.Error(err)
		}
		if err := c.SignalEntry(ctx, "NOSUCH"); !api.IsCode(err, api.CodeInvalid) {
			t.Errorf("a signal that isn't: %v", err)
		}
		if err := c.PowerOff(ctx, false); !api.IsCode(err, api.CodeUnsupported) {
			t.Errorf("power off: %v", err)
		}
		time.Sleep(100 * time.Millisecond) // until the trap is set
		if err := c.SignalEntry(ctx, "SIGUSR1"); err != nil {
			t.Error(err)
		}
		if code := g.exit(t); code != 5 {
			t.Errorf("exit %d", code)
		}
	}
}

func TestMachineHasATerminalOfItsOwn(t *testing.T) {
	hostIn, guestIn := pipe(t)
	guestOut, hostOut := pipe(t)
	p := guest.Process{Args: []string{"sh", "-c", "tty; read line; stty size; echo got $line; read line"}, TTY: true}
	g := startMachine(t, p, func(c *exec.Cmd) { c.Stdin, c.Stdout = guestIn, guestOut })
	guestOut.Close()
	r := bufio.NewReader(hostOut)
	expect(t, r, "/dev/pts/")
	if err := g.dial(t).ResizeEntry(testContext(t), 132, 43); err != nil {
		t.Fatal(err)
	}
	io.WriteString(hostIn, "hello\n")
	expect(t, r, "43 132\r\ngot hello\r\n")
	io.WriteString(hostIn, "\x03")
	if code := g.exit(t); code != 130 {
		t.Errorf("exit %d", code)
	}
}

// pipe returns its writing and its reading end.
func pipe(t *testing.T) (w, r *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.Close()
		w.Close()
	})
	return w, r
}

func TestMetricsAreTheGuests(t *testing.T) {
	g := startMachine(t, guest.Process{Args: []string{"sh", "-c", "sleep 1000 & sleep 1000 & wait"}}, nil)
	time.Sleep(100 * time.Millisecond)
	m, err := g.dial(t).Metrics(testContext(t))
	if err != nil || m.MemoryTotal < 1<<20 || m.MemoryAvailable > m.MemoryTotal || m.DiskSize == 0 || m.DiskUsed > m.DiskSize || m.Tasks < 4 || m.Load < 0 {
		t.Errorf("got %+v, %v", m, err)
	}
}
