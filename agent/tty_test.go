package agent_test

import (
	"bufio"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/cleave-project/cleave/agent"
)

// start executes a command that the test talks with.
func start(t testing.TB, c *agent.Client, req agent.ExecRequest) *agent.Exec {
	t.Helper()
	e, err := c.Exec(testContext(t), req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

// expect reads from r until want has come.
func expect(t testing.TB, r *bufio.Reader, want string) string {
	t.Helper()
	got := make(chan string, 1)
	go func() {
		var b strings.Builder
		for !strings.Contains(b.String(), want) {
			c, err := r.ReadByte()
			if err != nil {
				b.WriteString("<" + err.Error() + ">")
				break
			}
			b.WriteByte(c)
		}
		got <- b.String()
	}()
	select {
	case s := <-got:
		if !strings.Contains(s, want) {
			t.Fatalf("got %q, want %q in it", s, want)
		}
		return s
	case <-time.After(patience):
		t.Fatalf("no %q came", want)
	}
	return ""
}

func wait(t testing.TB, e *agent.Exec) int {
	t.Helper()
	code, err := e.Wait(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	return code
}

func ttySh(script string) agent.ExecRequest {
	return agent.ExecRequest{Command: []string{"sh", "-c", script}, TTY: true, Stdin: true, Cols: 132, Rows: 43}
}

func TestTerminalIsControlling(t *testing.T) {
	c := startServe(t).dial(t)
	e := start(t, c, ttySh("test -t 0 && test -t 1 && test -t 2 && stty size && echo here >/dev/tty && echo $TERM"))
	if e.Stderr() != nil {
		t.Error("a terminal has no stderr of its own")
	}
	out, err := io.ReadAll(e.Stdout())
	if err != nil || string(out) != "43 132\r\nhere\r\nxterm\r\n" {
		t.Errorf("got %q, %v", out, err)
	}
	if code := wait(t, e); code != 0 {
		t.Errorf("exit %d", code)
	}
}

func TestTerminalResizeSendsSIGWINCH(t *testing.T) {
	c := startServe(t).dial(t)
	e := start(t, c, ttySh(`trap 'stty size; exit 5' WINCH; echo ready; while :; do read x; done`))
	out := bufio.NewReader(e.Stdout())
	expect(t, out, "ready")
	if err := e.Resize(100, 20); err != nil {
		t.Fatal(err)
	}
	// dash runs the trap once its read has returned.
	e.Stdin().Write([]byte("\n"))
	expect(t, out, "20 100")
	if code := wait(t, e); code != 5 {
		t.Errorf("exit %d", code)
	}
}

func TestTerminalInterruptCharacterReachesForeground(t *testing.T) {
	c := startServe(t).dial(t)
	e := start(t, c, ttySh("echo ready; exec sleep 1000"))
	expect(t, bufio.NewReader(e.Stdout()), "ready")
	e.Stdin().Write([]byte{3})
	if code := wait(t, e); code != 130 {
		t.Errorf("exit %d", code)
	}
}

func TestTerminalInputEndsWithEOFCharacter(t *testing.T) {
	c := startServe(t).dial(t)
	e := start(t, c, ttySh("cat; echo done"))
	e.Stdin().Write([]byte("line\n"))
	e.Stdin().Close()
	out, err := io.ReadAll(e.Stdout())
	if err != nil || string(out) != "line\r\nline\r\ndone\r\n" {
		t.Errorf("got %q, %v", out, err)
	}
}

func TestTerminalOutputIsCompleteAtExit(t *testing.T) {
	c := startServe(t).dial(t)
	e := start(t, c, ttySh("stty -opost; head -c 1000000 /dev/zero | tr '\\0' x; exit 4"))
	out, err := io.ReadAll(e.Stdout())
	if err != nil || len(out) != 1000000 {
		t.Errorf("got %d bytes, %v", len(out), err)
	}
	if code := wait(t, e); code != 4 {
		t.Errorf("exit %d", code)
	}
}

func TestTerminalDisconnectHangsUp(t *testing.T) {
	g := startServe(t)
	watch := g.dial(t)
	c := g.dial(t)
	mark := t.TempDir() + "/hup"
	e := start(t, c, ttySh("trap 'echo hup > "+mark+"; exit' HUP; echo ready; while :; do sleep 0.05; done"))
	expect(t, bufio.NewReader(e.Stdout()), "ready")
	c.Close()
	r := command(t, watch, sh("while ! test -s "+mark+"; do sleep 0.05; done; cat "+mark), nil)
	if r.stdout != "hup\n" {
		t.Errorf("got %+v", r)
	}
}
