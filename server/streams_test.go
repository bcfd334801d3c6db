package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/cleave-project/cleave/api"
)

// pipes is a session whose guest is the test.
type pipes struct {
	in, out, err struct {
		*io.PipeReader
		*io.PipeWriter
	}
	stderr  bool
	orders  chan string
	exit    chan api.ExitStatus
	failure error
	closed  chan struct{}
	once    sync.Once
}

func newPipes() *pipes {
	p := &pipes{orders: make(chan string, 16), exit: make(chan api.ExitStatus, 1), closed: make(chan struct{}), stderr: true}
	p.in.PipeReader, p.in.PipeWriter = io.Pipe()
	p.out.PipeReader, p.out.PipeWriter = io.Pipe()
	p.err.PipeReader, p.err.PipeWriter = io.Pipe()
	return p
}

func (p *pipes) Stdin() io.WriteCloser { return p.in.PipeWriter }
func (p *pipes) Stdout() io.Reader     { return p.out.PipeReader }
func (p *pipes) Stderr() io.Reader {
	if !p.stderr {
		return nil
	}
	return p.err.PipeReader
}

func (p *pipes) Resize(cols, rows uint16) error {
	p.orders <- fmt.Sprint("resize ", cols, "x", rows)
	return nil
}

func (p *pipes) Signal(name string) error {
	p.orders <- "signal " + name
	return errors.New("no such process")
}

func (p *pipes) Exit(ctx context.Context) (api.ExitStatus, error) {
	select {
	case st := <-p.exit:
		return st, p.failure
	case <-ctx.Done():
		return api.ExitStatus{}, ctx.Err()
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() {
		close(p.closed)
		p.in.PipeReader.CloseWithError(io.ErrClosedPipe)
		p.out.PipeWriter.CloseWithError(io.ErrClosedPipe)
		p.err.PipeWriter.CloseWithError(io.ErrClosedPipe)
	})
	return nil
}

// end is the end of the guest.
func (p *pipes) end(st api.ExitStatus) {
	p.exit <- st
	p.out.PipeWriter.Close()
	p.err.PipeWriter.Close()
}

func opens(sess session, err error) func(context.Context) (session, error) {
	return func(context.Context) (session, error) { return sess, err }
}

// dial opens a stream with a ticket for begin.
func (h *harness) dial(kind callerKind, begin func(context.Context) (session, error)) *websocket.Conn {
	h.Helper()
	tk, err := h.s.tickets.issue(kind, begin)
	if err != nil {
		h.Fatal(err)
	}
	c, _, err := websocket.Dial(h.Context(), h.base+tk.URL, &websocket.DialOptions{HTTPClient: h.client})
	if err != nil {
		h.Fatal(err)
	}
	c.SetReadLimit(-1)
	h.Cleanup(func() { c.CloseNow() })
	return c
}

func (h *harness) say(c *websocket.Conn, channel byte, text string) {
	h.Helper()
	if err := c.Write(h.Context(), websocket.MessageBinary, append([]byte{channel}, text...)); err != nil {
		h.Fatal(err)
	}
}

func (h *harness) hear(c *websocket.Conn) string {
	h.Helper()
	ctx, cancel := context.WithTimeout(h.Context(), 10*time.Second)
	defer cancel()
	_, p, err := c.Read(ctx)
	if err != nil {
		h.Fatal(err)
	}
	return string(p)
}

func TestStreamFrames(t *testing.T) {
	h := start(t, newFake())
	p := newPipes()
	c := h.dial(callerUnix, opens(p, nil))
	h.say(c, 0, "hello")
	buf := make([]byte, 5)
	if _, err := io.ReadFull(p.in.PipeReader, buf); err != nil || string(buf) != "hello" {
		t.Errorf("stdin is %q, %v", buf, err)
	}
	h.say(c, 3, `{"resize":{"cols":8,"rows":2}}`)
	h.say(c, 3, `{"signal":"SIGINT"}`)
	for _, want := range []string{"resize 8x2", "signal SIGINT"} {
		if got := <-p.orders; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	h.say(c, 0, "")
	h.say(c, 3, `{"eof":true}`)
	if n, err := p.in.PipeReader.Read(buf); n != 0 || err != io.EOF {
		t.Errorf("after eof: %d, %v", n, err)
	}
	h.say(c, 0, "dropped: there is no input any more")
	io.WriteString(p.out.PipeWriter, "\x00out")
	if got := h.hear(c); got != "\x01\x00out" {
		t.Errorf("got %q", got)
	}
	io.WriteString(p.err.PipeWriter, "err")
	if got := h.hear(c); got != "\x02err" {
		t.Errorf("got %q", got)
	}
	p.end(api.ExitStatus{Code: 7})
	if got := h.hear(c); got != "\x03"+`{"exit":{"code":7}}` {
		t.Errorf("got %q", got)
	}
	if _, _, err := c.Read(t.Context()); websocket.CloseStatus(err) != websocket.StatusNormalClosure {
		t.Errorf("the stream ends with %v", err)
	}
	<-p.closed
}

func TestStreamTellsWhyItCannotBegin(t *testing.T) {
	h := start(t, newFake())
	c := h.dial(callerUnix, opens(nil, api.Errorf(api.CodeConflict, "it is stopped").WithHint("start it")))
	if got := h.hear(c); got != "\x03"+`{"error":{"code":"conflict","detail":"it is stopped","hint":"start it"}}` {
		t.Errorf("got %q", got)
	}
}

func TestStreamTellsThatTheExitStatusIsLost(t *testing.T) {
	h := start(t, newFake())
	p := newPipes()
	p.failure = api.Errorf(api.CodeUnavailable, "the keeper went away")
	c := h.dial(callerUnix, opens(p, nil))
	p.end(api.ExitStatus{})
	if got := h.hear(c); !strings.Contains(got, `"error":{"code":"unavailable"`) {
		t.Errorf("got %q", got)
	}
}

func TestStreamWithATerminalHasNoStderr(t *testing.T) {
	h := start(t, newFake())
	p := newPipes()
	p.stderr = false
	c := h.dial(callerUnix, opens(p, nil))
	p.end(api.ExitStatus{Code: 130, Signal: "SIGINT"})
	if got := h.hear(c); !strings.Contains(got, `{"code":130,"signal":"SIGINT"}`) {
		t.Errorf("got %q", got)
	}
}

func TestBadMessagesEndTheStream(t *testing.T) {
	h := start(t, newFake())
	for name, msg := range map[string]struct {
		kind websocket.MessageType
		data []byte
	}{
		"text":            {websocket.MessageText, []byte("\x00a")},
		"no channel":      {websocket.MessageBinary, nil},
		"server channel":  {websocket.MessageBinary, []byte("\x01a")},
		"unknown channel": {websocket.MessageBinary, []byte("\x09a")},
		"bad control":     {websocket.MessageBinary, []byte("\x03{")},
		"long control":    {websocket.MessageBinary, append([]byte("\x03"), bytes.Repeat([]byte(" "), maxControl+1)...)},
	} {
		p := newPipes()
		c := h.dial(callerUnix, opens(p, nil))
		if err := c.Write(t.Context(), msg.kind, msg.data); err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.Read(t.Context()); websocket.CloseStatus(err) != websocket.StatusPolicyViolation {
			t.Errorf("%s: the stream ends with %v", name, err)
		}
		<-p.closed
	}
}

func TestLeavingClientEndsTheSession(t *testing.T) {
	for name, stuck := range map[string]bool{"idle": false, "while its input is held up": true} {
		t.Run(name, func(t *testing.T) {
			h := start(t, newFake(), func(t *timeouts) { t.heartbeat = 50 * time.Millisecond })
			p := newPipes()
			c := h.dial(callerUnix, opens(p, nil))
			if stuck {
				h.say(c, 0, "nobody reads this")
				time.Sleep(50 * time.Millisecond)
			}
			c.CloseNow()
			select {
			case <-p.closed:
			case <-time.After(patience):
				t.Fatal("the session goes on")
			}
		})
	}
}

func TestStopEndsStreams(t *testing.T) {
	h := start(t, newFake())
	p := newPipes()
	c := h.dial(callerUnix, opens(p, nil))
	go func() {
		time.Sleep(50 * time.Millisecond)
		h.stop()
	}()
	if _, _, err := c.Read(t.Context()); websocket.CloseStatus(err) != websocket.StatusGoingAway {
		t.Errorf("the stream ends with %v", err)
	}
	<-p.closed
	h.ended()
}

func TestOutputWaitsForTheClient(t *testing.T) {
	h := start(t, newFake())
	p := newPipes()
	c := h.dial(callerUnix, opens(p, nil))
	var taken atomic.Int64
	go func() {
		buf := make([]byte, pieceSize)
		for {
			n, err := p.out.PipeWriter.Write(buf)
			taken.Add(int64(n))
			if err != nil {
				return
			}
		}
	}()
	var held int64
	for now := int64(-1); now != held || held == 0; now = taken.Load() {
		held = taken.Load()
		if held > 4<<20 {
			t.Fatalf("a client that reads nothing was sent %d bytes", held)
		}
		time.Sleep(200 * time.Millisecond)
	}
	for range 100 {
		h.hear(c)
	}
	if now := taken.Load(); now <= held {
		t.Error("output does not go on")
	}
}

func TestTicketsWorkOnceForTheirCaller(t *testing.T) {
	h := start(t, newFake())
	now := time.Now()
	h.s.tickets.now = func() time.Time { return now }
	use := func(url string) int {
		_, resp, err := websocket.Dial(t.Context(), h.base+url, &websocket.DialOptions{HTTPClient: h.client})
		if resp == nil {
			t.Fatal(err)
		}
		return resp.StatusCode
	}
	issue := func(kind callerKind) string {
		tk, err := h.s.tickets.issue(kind, opens(newPipes(), nil))
		if err != nil {
			t.Fatal(err)
		}
		return tk.URL
	}
	url := issue(callerUnix)
	if got := use(url); got != http.StatusSwitchingProtocols {
		t.Errorf("first use: %d", got)
	}
	if got := use(url); got != 404 {
		t.Errorf("second use: %d", got)
	}
	if got := use(issue(callerToken)); got != 404 {
		t.Errorf("over the other kind of connection: %d", got)
	}
	url = issue(callerUnix)
	now = now.Add(ticketLife)
	if got := use(url); got != 404 {
		t.Errorf("after its life: %d", got)
	}
	if got := use("/v1/streams/x"); got != 404 {
		t.Errorf("never issued: %d", got)
	}
	for range maxTickets {
		issue(callerUnix)
	}
	if _, err := h.s.tickets.issue(callerUnix, nil); !api.IsCode(err, api.CodeBusy) {
		t.Errorf("over the limit: %v", err)
	}
	now = now.Add(ticketLife)
	issue(callerUnix)
}

func TestTicketIsTheCredentialOfAStreamOverTCP(t *testing.T) {
	h := startTCP(t, newFake())
	p := newPipes()
	c := h.dial(callerToken, opens(p, nil)) // sends no token
	p.end(api.ExitStatus{})
	if got := h.hear(c); !strings.Contains(got, "exit") {
		t.Errorf("got %q", got)
	}
	tk, _ := h.s.tickets.issue(callerToken, opens(newPipes(), nil))
	_, resp, err := websocket.Dial(t.Context(), h.base+tk.URL, &websocket.DialOptions{HTTPHeader: http.Header{"Origin": {"http://evil.example"}}})
	if err == nil || resp == nil || resp.StatusCode != 403 {
		t.Errorf("from a foreign page: %v", err)
	}
}

func TestTicketsAreIssuedForInstancesThatExist(t *testing.T) {
	f := newFake()
	f.add("default", "web", 1)
	h := start(t, f)
	for path, body := range map[string]string{"exec": `{"command":["true"]}`, "console": ``} {
		resp, text := h.do("POST", "/v1/instances/web/"+path, body)
		tk := decode[api.Ticket](t, text)
		if resp.StatusCode != 200 || len(tk.Ticket) < 43 || tk.URL != "/v1/streams/"+tk.Ticket || time.Until(tk.Expires) > ticketLife {
			t.Errorf("%s: %s %s", path, resp.Status, text)
		}
		if p := h.fails("POST", "/v1/instances/none/"+path, body); p.Status != 404 {
			t.Errorf("%s: %+v", path, p)
		}
	}
	if p := h.fails("POST", "/v1/instances/web/exec", `{"command":[]}`); p.Field != "command" {
		t.Errorf("%+v", p)
	}
}

func FuzzControlMessage(f *testing.F) {
	for _, s := range []string{`{"resize":{"cols":80,"rows":24}}`, `{"signal":"SIGINT"}`, `{"eof":true}`, `{"resize":{"cols":-1}}`, `[]`, `null`, ``} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		o, err := parseOrder(p)
		if _, bad := errors.AsType[*badMessage](err); err != nil && !bad {
			t.Errorf("%q: %v", p, err)
		}
		if err == nil && len(o.Signal) > maxControl {
			t.Errorf("a signal of %d bytes", len(o.Signal))
		}
	})
}
