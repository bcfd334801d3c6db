package agent_test

import (
	"bufio"
	"fmt"
	"io"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/agent"
)

func TestSignalsReachTheWholeGroup(t *testing.T) {
	c := startServe(t).dial(t)
	for _, tc := range []struct {
		signal string
		code   int
	}{
		{"SIGTERM", 143}, {"int", 130}, {"SIGKILL", 137}, {"9", 137}, {"SIGRTMIN+3", 128 + 37}, {"RTMAX-1", 128 + 63},
	} {
		t.Run(tc.signal, func(t *testing.T) {
			// sh waits for its child: only if both get the signal it ends now.
			e := start(t, c, sh("sh -c 'echo $$; exec sleep 1000'; sleep 1000"))
			line, err := bufio.NewReader(e.Stdout()).ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			if err := e.Signal("SIGNONSENSE"); err != nil {
				t.Error(err)
			}
			if err := e.Signal(tc.signal); err != nil {
				t.Fatal(err)
			}
			if code := wait(t, e); code != tc.code {
				t.Errorf("exit %d", code)
			}
			pid, _ := strconv.Atoi(strings.TrimSpace(line))
			waitGone(t, pid)
			if err := e.Signal("SIGTERM"); err != nil {
				t.Errorf("after the end: %v", err)
			}
		})
	}
}

// waitGone waits for the end of a process that is no child of ours.
func waitGone(t testing.TB, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err == unix.ESRCH {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 20_000)
	if err != nil || n != 1 {
		t.Errorf("process %d still runs (%v)", pid, err)
	}
}

func TestDisconnectHangsUpThePipes(t *testing.T) {
	g := startServe(t)
	for _, tc := range []struct {
		name   string
		script string
		close  func(*agent.Client, *agent.Exec)
	}{
		{"client", "echo $$; exec sleep 1000", func(c *agent.Client, _ *agent.Exec) { c.Close() }},
		{"exec", "echo $$; exec sleep 1000", func(_ *agent.Client, e *agent.Exec) { e.Close() }},
		{"writer", "trap '' HUP; echo $$; while echo x; do :; done", func(c *agent.Client, _ *agent.Exec) { c.Close() }},
		{"reader", "trap '' HUP; echo $$; cat", func(c *agent.Client, _ *agent.Exec) { c.Close() }},
		{"stopped", "echo $$; kill -STOP $$; sleep 1000", func(c *agent.Client, _ *agent.Exec) { c.Close() }},
		{"writer unread", "echo $$; exec cat /dev/zero", func(_ *agent.Client, e *agent.Exec) { e.Close() }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := g.dial(t)
			req := sh(tc.script)
			req.Stdin = true
			e := start(t, c, req)
			line, err := bufio.NewReader(io.LimitReader(e.Stdout(), 64)).ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			pid, err := strconv.Atoi(strings.TrimSpace(line))
			if err != nil {
				t.Fatal(err)
			}
			tc.close(c, e)
			waitGone(t, pid)
		})
	}
}

// A command that ignores SIGHUP lives on, as it would on a terminal.
func TestDisconnectLeavesWhatIgnoresIt(t *testing.T) {
	g := startServe(t)
	c := g.dial(t)
	e := start(t, c, sh("trap '' HUP; echo $$; exec sleep 1000"))
	line, err := bufio.NewReader(e.Stdout()).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(line))
	c.Close()
	time.Sleep(300 * time.Millisecond) // nothing tells that nothing happens
	if err := syscall.Kill(pid, 0); err != nil {
		t.Errorf("it ended: %v", err)
	}
	// The agent still reaps it: as a zombie it would stay until the agent ends.
	syscall.Kill(pid, syscall.SIGKILL)
	r := command(t, g.dial(t), sh(fmt.Sprintf("while test -e /proc/%d; do sleep 0.02; done; echo reaped", pid)), nil)
	if r.stdout != "reaped\n" {
		t.Errorf("got %+v", r)
	}
}

func TestBackgroundProcessDoesNotHoldExec(t *testing.T) {
	c := startServe(t).dial(t)
	for _, tty := range []bool{false, true} {
		t.Run(fmt.Sprintf("tty=%v", tty), func(t *testing.T) {
			// setsid: with a terminal the hang-up would end it.
			req := sh("setsid sleep 1000 & echo $!; head -c 60000 /dev/zero; exit 2")
			if tty {
				req.TTY, req.Stdin = true, true
				req.Command[2] = "stty -opost; " + req.Command[2]
			}
			r := command(t, c, req, nil)
			pid, _, _ := strings.Cut(r.stdout, "\n")
			if n, err := strconv.Atoi(pid); err == nil {
				defer syscall.Kill(n, syscall.SIGKILL)
			}
			if r.code != 2 || len(r.stdout) != 60000+len(pid)+1 {
				t.Errorf("exit %d, %d bytes", r.code, len(r.stdout))
			}
		})
	}
}

func TestCommandsHearWhatTheAgentsParentIgnores(t *testing.T) {
	signal.Ignore(unix.SIGHUP)
	defer signal.Reset(unix.SIGHUP)
	c := startServe(t).dial(t)
	if r := command(t, c, sh("kill -HUP $$; echo deaf"), nil); r.stdout != "" || r.code != 128+int(unix.SIGHUP) {
		t.Errorf("got %+v", r)
	}
}
