package agent_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/cleave-project/cleave/agent"
	"github.com/cleave-project/cleave/agent/guest"
	"github.com/cleave-project/cleave/agent/wire"
	"github.com/cleave-project/cleave/api"
)

// fakeGuest runs play on the guest's end of a connection and returns the
// host's.
func fakeGuest(t testing.TB, play func(conn net.Conn)) net.Conn {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	host, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		play(conn)
	}()
	t.Cleanup(func() {
		host.Close()
		conn.Close()
		<-done
	})
	return host
}

// greeted is a guest that keeps to the protocol until the session begins.
func greeted(play func(conn net.Conn, r *bufio.Reader)) func(net.Conn) {
	return func(conn net.Conn) {
		r := bufio.NewReader(conn)
		if _, err := wire.Answer(r, conn); err == nil {
			play(conn, r)
		}
	}
}

// replying answers every request's control stream with what play does.
func replying(play func(control *yamux.Stream, data []*yamux.Stream, y *yamux.Session)) func(net.Conn) {
	return greeted(func(conn net.Conn, r *bufio.Reader) {
		y, err := wire.ServerSession(r, conn)
		if err != nil {
			return
		}
		defer y.Close()
		for {
			control, err := y.AcceptStream()
			if err != nil {
				return
			}
			var req wire.Request
			if wire.ReadMessage(control, wire.MaxRequest, &req) != nil {
				return
			}
			var data []*yamux.Stream
			for range req.Streams {
				s, err := y.AcceptStream()
				if err != nil {
					return
				}
				data = append(data, s)
			}
			play(control, data, y)
		}
	})
}

func deafMute(net.Conn) {}

func mustDial(t testing.TB, conn net.Conn) *agent.Client {
	t.Helper()
	c, err := agent.Dial(testContext(t), conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func brief(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

// inTime fails the test if f takes longer than a context's end and closing a
// request may.
func inTime(t testing.TB, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(patience):
		buf := make([]byte, 1<<20)
		t.Fatalf("%s hangs\n%s", what, buf[:runtime.Stack(buf, true)])
	}
}

func TestDialEndsWithItsContext(t *testing.T) {
	_, err := agent.Dial(brief(t), fakeGuest(t, deafMute))
	if !api.IsCode(err, api.CodeTimeout) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := agent.Dial(ctx, fakeGuest(t, deafMute)); !api.IsCode(err, api.CodeCancelled) {
		t.Errorf("got %v", err)
	}
	if _, err := agent.Dial(testContext(t), fakeGuest(t, func(c net.Conn) { c.Close() })); !api.IsCode(err, api.CodeUnavailable) {
		t.Errorf("got %v", err)
	}
}

// A guest that greets and then neither reads nor answers blocks nobody longer
// than their context, whatever they do.
func TestNothingWaitsForAGuestWithoutItsContext(t *testing.T) {
	endless := readerFunc(func(p []byte) (int, error) { return len(p), nil })
	silent := greeted(func(net.Conn, *bufio.Reader) {})
	for what, call := range map[string]func(*agent.Client) error{
		"ping": func(c *agent.Client) error { _, err := c.Ping(brief(t)); return err },
		"stat": func(c *agent.Client) error { _, err := c.Stat(brief(t), "/x"); return err },
		"exec": func(c *agent.Client) error { _, err := c.Exec(brief(t), sh("true")); return err },
		"get":  func(c *agent.Client) error { _, err := c.Get(brief(t), "/x"); return err },
		"put":  func(c *agent.Client) error { return c.Put(brief(t), "/x", endless) },
		"many": func(c *agent.Client) (err error) {
			for range 1000 { // more than may be open unanswered
				_, err = c.Ping(brief(t))
				if err == nil {
					return nil
				}
			}
			return err
		},
	} {
		t.Run(what, func(t *testing.T) {
			if what == "many" {
				ctx, cancel := context.WithCancel(t.Context())
				cancel()
				call = func(c *agent.Client) (err error) {
					for range 1000 {
						_, err = c.Ping(ctx)
					}
					return err
				}
			}
			c := mustDial(t, fakeGuest(t, silent))
			inTime(t, what, func() {
				if err := call(c); !api.IsCode(err, api.CodeTimeout) && !api.IsCode(err, api.CodeCancelled) {
					t.Errorf("got %v", err)
				}
			})
			inTime(t, "close", func() { c.Close() })
		})
	}
}

// A command whose guest stops to read and to answer.
func TestExecOfAGuestThatStalls(t *testing.T) {
	stall := make(chan struct{})
	defer close(stall)
	c := mustDial(t, fakeGuest(t, replying(func(control *yamux.Stream, data []*yamux.Stream, y *yamux.Session) {
		wire.WriteMessage(control, wire.Reply{Started: true})
		<-stall // yamux goes on reading, up to the window
	})))
	req := sh("x")
	req.Stdin = true
	e, err := c.Exec(testContext(t), req)
	if err != nil {
		t.Fatal(err)
	}
	written := make(chan error, 1)
	go func() {
		_, err := io.Copy(e.Stdin(), readerFunc(func(p []byte) (int, error) { return len(p), nil }))
		written <- err
	}()
	if _, err := e.Wait(brief(t)); !api.IsCode(err, api.CodeTimeout) {
		t.Errorf("wait: %v", err)
	}
	inTime(t, "close", func() {
		e.Close()
		if err := <-written; err == nil {
			t.Error("writing went well")
		}
		if _, err := e.Stdout().Read(make([]byte, 1)); !errors.Is(err, io.ErrClosedPipe) && err != io.EOF {
			t.Errorf("reading: %v", err)
		}
	})
}

func TestBrokenRepliesAreErrors(t *testing.T) {
	raw := func(s string) func(*yamux.Stream, []*yamux.Stream, *yamux.Session) {
		return func(control *yamux.Stream, _ []*yamux.Stream, _ *yamux.Session) {
			io.WriteString(control, s)
			control.Close()
		}
	}
	for name, play := range map[string]func(*yamux.Stream, []*yamux.Stream, *yamux.Session){
		"oversized": raw("\xff\xff\xff\xff"),
		"no JSON":   raw("\x00\x00\x00\x02{]"),
		"empty":     raw("\x00\x00\x00\x02{}"),
		"other":     raw("\x00\x00\x00\x0d{\"done\":true}"),
		"wrong":     raw("\x00\x00\x00\x0c{\"done\":\"a\"}"),
		"nothing":   raw(""),
		"hangup":    func(_ *yamux.Stream, _ []*yamux.Stream, y *yamux.Session) { y.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			c := mustDial(t, fakeGuest(t, replying(play)))
			ctx := testContext(t)
			_, pingErr := c.Ping(ctx)
			_, statErr := c.Stat(ctx, "/x")
			_, execErr := c.Exec(ctx, sh("true"))
			_, getErr := c.Get(ctx, "/x")
			for what, err := range map[string]error{"ping": pingErr, "stat": statErr, "exec": execErr, "get": getErr} {
				if !api.IsCode(err, api.CodeUnavailable) {
					t.Errorf("%s: %v", what, err)
				}
			}
		})
	}
}

func TestErrorsOfAGuestAreMadePrintable(t *testing.T) {
	c := mustDial(t, fakeGuest(t, replying(func(control *yamux.Stream, _ []*yamux.Stream, _ *yamux.Session) {
		wire.WriteMessage(control, wire.Reply{Error: &api.Error{Code: "made-up", Field: "\x1b", Message: "\x1b]0;evil\x07" + strings.Repeat("x", 30000), Hint: "a\nb"}})
	})))
	_, err := c.Ping(testContext(t))
	var e *api.Error
	if !errors.As(err, &e) || e.Code != api.CodeInternal {
		t.Fatalf("got %v", err)
	}
	if s := e.Error() + e.Field; strings.ContainsAny(s, "\x1b\x07\n") || len(s) > 10000 {
		t.Errorf("%d bytes: %.100q", len(s), s)
	}
}

// closeLater ends the session when the host is done with sending its request:
// yamux may tell a sender of the end rather than of its success.
func closeLater(y *yamux.Session) {
	time.Sleep(50 * time.Millisecond)
	y.Close()
}

// The output of a command is complete or an error, never cut in silence.
func TestOutputCutByTheConnectionIsAnError(t *testing.T) {
	c := mustDial(t, fakeGuest(t, replying(func(control *yamux.Stream, data []*yamux.Stream, y *yamux.Session) {
		wire.WriteMessage(control, wire.Reply{Started: true})
		io.WriteString(data[0], "half of it")
		wire.WriteMessage(control, wire.Reply{Exit: &wire.Exit{}})
		closeLater(y)
	})))
	e, err := c.Exec(testContext(t), sh("true"))
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	out, err := io.ReadAll(e.Stdout())
	if string(out) != "half of it" || !api.IsCode(err, api.CodeUnavailable) {
		t.Errorf("got %q, %v", out, err)
	}
	if code, err := e.Wait(testContext(t)); code != 0 || err != nil {
		t.Errorf("exit %d, %v", code, err)
	}
}

func TestArchiveCutByTheConnectionIsAnError(t *testing.T) {
	for name, end := range map[string]func(control *yamux.Stream, y *yamux.Session){
		"connection": func(_ *yamux.Stream, y *yamux.Session) { closeLater(y) },
		"no result":  func(control *yamux.Stream, _ *yamux.Session) { control.Close() },
		"error": func(control *yamux.Stream, _ *yamux.Session) {
			wire.WriteMessage(control, wire.Reply{Error: api.Errorf(api.CodeUnavailable, "disk on fire")})
		},
	} {
		c := mustDial(t, fakeGuest(t, replying(func(control *yamux.Stream, data []*yamux.Stream, y *yamux.Session) {
			wire.WriteMessage(control, wire.Reply{Started: true})
			io.WriteString(data[0], "half")
			data[0].Close()
			end(control, y)
		})))
		r, err := c.Get(testContext(t), "/x")
		if err != nil {
			t.Fatal(err)
		}
		out, err := io.ReadAll(r)
		if string(out) != "half" || !api.IsCode(err, api.CodeUnavailable) {
			t.Errorf("%s: %q, %v", name, out, err)
		}
		r.Close()
	}
}

// Floods that would cost the host memory or goroutines end the connection at
// their first frame.
func TestFloodsEndTheConnection(t *testing.T) {
	frame := func(kind byte, flags uint16, id, length uint32) []byte {
		b := binary.BigEndian.AppendUint16([]byte{0, kind}, flags)
		return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(b, id), length)
	}
	for name, next := range map[string]func(i uint32) []byte{
		"streams": func(i uint32) []byte { return frame(1, 1, 2*i+2, 0) },
		"pings":   func(i uint32) []byte { return frame(2, 1, 0, i) },
		"window":  func(i uint32) []byte { return append(frame(0, 0, 1, 2<<20), make([]byte, 2<<20)...) },
	} {
		t.Run(name, func(t *testing.T) {
			before := runtime.NumGoroutine()
			c := mustDial(t, fakeGuest(t, greeted(func(conn net.Conn, _ *bufio.Reader) {
				for i := range uint32(1_000_000) {
					if _, err := conn.Write(next(i)); err != nil {
						return
					}
				}
			})))
			c.Ping(brief(t)) // stream 1
			select {
			case <-c.Closed():
			case <-time.After(patience):
				t.Error("the connection still stands")
			}
			if n := runtime.NumGoroutine() - before; n > 20 {
				t.Errorf("%d more goroutines", n)
			}
		})
	}
}

// Whatever a guest sends after the hello, the client survives and ends.
func FuzzClient(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x02\x00\x00\x00\x01\x00\x00\x00\x12\x00\x00\x00\x0e{\"done\":true}"), byte(0))
	f.Add([]byte("\x00\x01\x00\x02\x00\x00\x00\x01\x00\x00\x01\x00"), byte(1))
	f.Fuzz(func(t *testing.T, in []byte, op byte) {
		c := mustDial(t, fakeGuest(t, greeted(func(conn net.Conn, r *bufio.Reader) {
			conn.Write(in)
			conn.(*net.UnixConn).CloseWrite()
			io.Copy(io.Discard, r)
		})))
		ctx := testContext(t)
		switch op % 4 {
		case 0:
			c.Stat(ctx, "/x")
		case 1:
			if e, err := c.Exec(ctx, sh("true")); err == nil {
				io.Copy(io.Discard, e.Stdout())
				e.Wait(ctx)
				e.Close()
			}
		case 2:
			if r, err := c.Get(ctx, "/x"); err == nil {
				io.Copy(io.Discard, r)
				r.Close()
			}
		case 3:
			c.Put(ctx, "/x", bytes.NewReader(make([]byte, 1<<20)))
		}
	})
}

// Serve in this process, to count what it leaves behind.
func TestNothingLeaks(t *testing.T) {
	goroutines, fds := runtime.NumGoroutine(), countFDs(t)
	addr := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", addr)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- guest.Serve(l) }()
	connect := func() *agent.Client {
		conn, err := net.Dial("unix", addr)
		if err != nil {
			t.Fatal(err)
		}
		c, err := agent.Dial(testContext(t), conn)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	ctx := testContext(t)
	for range 5 {
		// Commands, copies and failures that end by themselves on one
		// connection.
		c := connect()
		for _, req := range []agent.ExecRequest{sh("echo x; exit 1"), {Command: []string{"no-such"}}, ttySh("echo x"), {Command: []string{"cat"}}} {
			tryCommand(ctx, c, req, nil)
		}
		if r, err := c.Get(ctx, "/etc/passwd"); err == nil {
			io.Copy(io.Discard, r)
			r.Close()
		}
		c.Put(ctx, t.TempDir(), archive(t))
		c.Close()
		// And those whose daemon goes away in the middle.
		c = connect()
		for _, req := range []agent.ExecRequest{sh("sleep 1000"), ttySh("sleep 1000"), sh("cat /dev/zero"), sh("echo x; cat")} {
			req.Stdin = true
			e, err := c.Exec(ctx, req)
			if err != nil {
				t.Fatal(err)
			}
			if req.Command[2] == "echo x; cat" {
				e.Close()
			}
		}
		c.Get(ctx, "/usr")
		go c.Put(ctx, "/", readerFunc(func(p []byte) (int, error) { return 0, nil }))
		conn, _ := net.Dial("unix", addr) // that never says hello
		c.Close()
		conn.Close()
	}
	// Every connection's end has been seen once the server has ended.
	l.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
	eventually(t, "goroutines", func() (int, int) { return runtime.NumGoroutine(), goroutines + 2 })
	eventually(t, "descriptors", func() (int, int) { return countFDs(t), fds })
}

func eventually(t *testing.T, what string, f func() (got, most int)) {
	t.Helper()
	got, most := f()
	for end := time.Now().Add(patience); got > most && time.Now().Before(end); got, most = f() {
		time.Sleep(10 * time.Millisecond)
	}
	if got > most {
		buf := make([]byte, 1<<20)
		t.Errorf("%d %s, before at most %d\n%s", got, what, most, buf[:runtime.Stack(buf, true)])
	}
}

func countFDs(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestPowerOffThatOutrunsItsReplyIsDone(t *testing.T) {
	gone := replying(func(_ *yamux.Stream, _ []*yamux.Stream, y *yamux.Session) { y.Close() })
	c := mustDial(t, fakeGuest(t, gone))
	if err := c.PowerOff(testContext(t), false); err != nil {
		t.Error(err)
	}
}
