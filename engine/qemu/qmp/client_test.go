package qmp

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// real starts a QEMU without a machine, and returns its socket and process.
func real(t *testing.T) (string, *exec.Cmd) {
	t.Helper()
	path, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("qemu-system-x86_64 isn't there: install Debian's package qemu-system-x86")
	}
	sock := filepath.Join(t.TempDir(), "q")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: sock, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c := exec.Command(path, "-M", "none", "-nodefaults", "-display", "none",
		"-chardev", "socket,id=qmp,fd=3,server=on,wait=off", "-mon", "chardev=qmp,mode=control")
	c.ExtraFiles, c.Stderr = []*os.File{f}, os.Stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	return sock, c
}

func dial(t *testing.T, sock string) *Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := Dial(ctx, sock)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestCommandsOfARealQEMU(t *testing.T) {
	sock, _ := real(t)
	c := dial(t, sock)
	if !c.Version().AtLeast(5, 0) {
		t.Errorf("version is %v", c.Version())
	}
	state, err := c.Status(t.Context())
	if err != nil || state == "" {
		t.Errorf("status is %q, %v", state, err)
	}
	var qe *Error
	if err := c.Execute(t.Context(), "no-such", nil, nil); !errors.As(err, &qe) || qe.Class != "CommandNotFound" {
		t.Errorf("an unknown command gives %v", err)
	}
	path, err := c.AddFile(t.Context(), os.Stderr, "mine")
	if err != nil || !strings.HasPrefix(path, "/dev/fdset/") {
		t.Fatalf("add-fd gives %q, %v", path, err)
	}
	again, err := c.AddFile(t.Context(), os.Stderr, "mine")
	if err != nil || again == path {
		t.Fatalf("add-fd gives %q and %q, %v", path, again, err)
	}
	var left []any
	if err := errors.Join(c.RemoveFiles(t.Context(), "mine", again), c.Execute(t.Context(), "query-fdsets", nil, &left)); err != nil || len(left) != 1 {
		t.Errorf("left are %v, %v", left, err)
	}
	if err := c.GetFile(t.Context(), "x", os.Stderr); err != nil {
		t.Error(err)
	}
	if err := c.CloseFile(t.Context(), "x"); err != nil {
		t.Error(err)
	}
}

func TestAnotherClientComesAfterTheFirst(t *testing.T) {
	sock, _ := real(t)
	dial(t, sock).Close()
	if _, err := dial(t, sock).Status(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestQuitEndsWithoutAnError(t *testing.T) {
	sock, cmd := real(t)
	c := dial(t, sock)
	if err := c.Quit(t.Context()); err != nil {
		t.Error(err)
	}
	<-c.Done()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	var down *Event
	for e := range c.Events() {
		if e.Name == EventShutdown {
			down = &e
		}
	}
	var why Shutdown
	if down == nil || down.Decode(&why) != nil || why.Reason != "host-qmp-quit" {
		t.Errorf("the event of the end is %+v", down)
	}
	if _, err := c.Status(t.Context()); err == nil {
		t.Error("a command was answered after the end")
	}
}

// TestHungQEMUHoldsNobody stops the process at each point of a conversation.
func TestHungQEMUHoldsNobody(t *testing.T) {
	sock, cmd := real(t)
	c := dial(t, sock)
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := c.Status(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a command gives %v", err)
	}
	// More than fits the socket's buffer: writing blocks.
	big := map[string]string{"x": strings.Repeat("x", 900<<10)}
	ctx, cancel = context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := c.Execute(ctx, "query-status", big, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a large command gives %v", err)
	}
	c.Close()
	ctx, cancel = context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := Dial(ctx, sock); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("dialing gives %v", err)
	}
	ctx, stop := context.WithCancelCause(t.Context())
	why := errors.New("changed my mind")
	time.AfterFunc(50*time.Millisecond, func() { stop(why) })
	if _, err := Dial(ctx, sock); !errors.Is(err, why) {
		t.Errorf("a dial that is given up gives %v", err)
	}
}

// TestLateAnswerIsNobodysElse lets a command's time run out and asks another.
func TestLateAnswerIsNobodysElse(t *testing.T) {
	c, peer := pair(t)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		peer.line()
		cancel()
		peer.line()
		peer.send(`{"return":{"status":"first"},"id":2}`, `{"return":{"status":"second"},"id":3}`)
	}()
	if _, err := c.Status(ctx); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if s, err := c.Status(t.Context()); err != nil || s != "second" {
		t.Errorf("got %q, %v", s, err)
	}
}

// peer plays a QEMU.
type peer struct {
	conn *net.UnixConn
	r    *bufio.Reader
}

func (p *peer) line() string {
	s, _ := p.r.ReadString('\n')
	return s
}

func (p *peer) send(lines ...string) {
	for _, l := range lines {
		fmt.Fprintf(p.conn, "%s\r\n", l)
	}
}

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "x"}, "capabilities": ["oob"]}}`

func conns(t testing.TB) (ours, theirs *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var out [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		conn, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		out[i] = conn.(*net.UnixConn)
		t.Cleanup(func() { conn.Close() })
	}
	return out[0], out[1]
}

// pair is a client and the peer that it has greeted.
func pair(t *testing.T) (*Client, *peer) {
	t.Helper()
	ours, theirs := conns(t)
	p := &peer{conn: theirs, r: bufio.NewReader(theirs)}
	go func() {
		p.send(greeting)
		p.line()
		p.send(`{"return":{},"id":1}`)
	}()
	c, err := New(t.Context(), ours)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, p
}

func TestHostileAnswersEndTheConnection(t *testing.T) {
	for _, c := range []struct{ name, send, want string }{
		{"no JSON", "hello", "no valid one"},
		{"wrong types", `{"return":{},"id":"one"}`, "no valid one"},
		{"an array", `[1]`, "no valid one"},
		{"endless line", strings.Repeat("x", MaxMessage+1), "larger than"},
		{"half a line", "", "unexpected EOF"},
		{"deep", strings.Repeat("[", 20000), "no valid one"},
		{"error without id", `{"error":{"class":"GenericError","desc":"what?"}}`, "what?"},
	} {
		t.Run(c.name, func(t *testing.T) {
			client, p := pair(t)
			go func() {
				p.line()
				if c.send == "" {
					_, _ = io.WriteString(p.conn, `{"return":`)
				} else {
					p.send(c.send)
				}
				p.conn.Close()
			}()
			_, err := client.Status(t.Context())
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v", err)
			}
			<-client.Done()
		})
	}
}

func TestAnswersOfWrongShapeFailTheCommandOnly(t *testing.T) {
	c, p := pair(t)
	go func() {
		p.line()
		p.send(`{"return":[],"id":2}`)
		p.line()
		p.send(`{"id":3}`)
		p.line()
		p.send(`{"return":{"status":"running"},"id":99}`, `{"what":1}`, ``, `{"return":{"status":"paused"},"id":4}`)
	}()
	for range 2 {
		if _, err := c.Status(t.Context()); err == nil {
			t.Error("a wrong answer was taken")
		}
	}
	if s, err := c.Status(t.Context()); err != nil || s != "paused" {
		t.Errorf("got %q, %v", s, err)
	}
}

func TestFloodOfEventsHoldsUpNothing(t *testing.T) {
	c, p := pair(t)
	go func() {
		for range 4 * maxEvents {
			p.send(`{"event":"RESET","data":{"guest":true},"timestamp":{"seconds":1,"microseconds":2}}`)
		}
		p.line()
		p.send(`{"return":{"status":"running"},"id":2}`)
	}()
	if _, err := c.Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	e := <-c.Events()
	if e.Name != EventReset || !e.Time.Equal(time.Unix(1, 2000)) {
		t.Errorf("event is %+v", e)
	}
}

func TestWhatIsNoQEMUIsRefused(t *testing.T) {
	for _, send := range []string{"{}", "SSH-2.0", greeting[:20], `{"return":{}}`} {
		ours, theirs := conns(t)
		go func() {
			fmt.Fprintln(theirs, send)
			theirs.Close()
		}()
		if _, err := New(t.Context(), ours); err == nil {
			t.Errorf("%q was greeted", send)
		}
	}
}

func FuzzReadMessage(f *testing.F) {
	f.Add([]byte(greeting + "\n"))
	f.Add([]byte(`{"event":"SHUTDOWN","data":{"guest":true,"reason":"guest-shutdown"},"timestamp":{"seconds":1,"microseconds":-1}}` + "\r\n"))
	f.Add([]byte(`{"return":{"status":"running"},"id":1}` + "\n"))
	f.Add([]byte(`{"id":1,"error":{"class":"GenericError","desc":"no"}}` + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bufio.NewReader(bytes.NewReader(b))
		for {
			m, err := readMessage(r)
			if err != nil {
				return
			}
			e := Event{Name: m.Event, Data: m.Data}
			var why Shutdown
			_ = e.Decode(&why)
		}
	})
}
