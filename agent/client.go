package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"

	"github.com/hashicorp/yamux"

	"github.com/cleave-project/cleave/agent/wire"
	"github.com/cleave-project/cleave/api"
)

// Client is one connection to a guest's agent.
type Client struct {
	session *yamux.Session
	version int
	opening sync.Mutex // keeps a request's streams together
}

// readAhead is how much is read from a connection at once where messages are
// small; larger reads pass it by.
const readAhead = 16 << 10

// Dial speaks the hello on conn. It owns conn from then on and closes it when
// it fails.
func Dial(ctx context.Context, conn net.Conn) (*Client, error) {
	// Closing is the one thing that ends a Read of every kind of stream.
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	r := bufio.NewReaderSize(conn, readAhead)
	version, err := wire.Greet(ctx, r, conn)
	if !stop() {
		return nil, interrupted(ctx, "greeting the guest's agent")
	}
	if err != nil {
		conn.Close()
		return nil, broken("greeting the guest's agent", err)
	}
	session, err := wire.ClientSession(r, conn)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("agent: %w", err)
	}
	return &Client{session: session, version: version}, nil
}

// Close ends the connection and every request on it.
func (c *Client) Close() error { return c.session.Close() }

// Closed is closed when the connection has ended, by either side.
func (c *Client) Closed() <-chan struct{} { return c.session.CloseChan() }

// Ping asks the agent who it is.
func (c *Client) Ping(ctx context.Context) (Info, error) {
	const what = "asking the guest's agent who it is"
	reply, err := c.ask(ctx, what, &wire.Request{Op: wire.OpPing})
	if err != nil {
		return Info{}, err
	}
	if reply.Info == nil {
		return Info{}, broken(what, errUnexpected)
	}
	return Info{
		Version: c.version,
		Release: printable(reply.Info.Release, 100),
		PID:     reply.Info.PID,
		Uptime:  time.Duration(reply.Info.UptimeSeconds) * time.Second,
	}, nil
}

var errUnexpected = errors.New("it sent a reply that doesn't fit the request")

// ask sends a request without data and returns its only reply.
func (c *Client) ask(ctx context.Context, what string, req *wire.Request) (*wire.Reply, error) {
	call, err := c.open(ctx, what, req)
	if err != nil {
		return nil, err
	}
	defer call.close()
	return call.reply(ctx, what)
}

// call is one request: its control stream and its data streams.
type call struct {
	control *yamux.Stream
	data    []*yamux.Stream
}

// open sends a request. Opening can block for as long as the guest doesn't
// read, without regard to any context, so it is done beside the caller; what
// was opened too late is closed again. It ends with the session.
func (c *Client) open(ctx context.Context, what string, req *wire.Request) (*call, error) {
	type result struct {
		call *call
		err  error
	}
	done := make(chan result)
	go func() {
		call, err := c.openNow(req)
		select {
		case done <- result{call, err}:
		case <-ctx.Done():
			if call != nil {
				call.closeNow()
			}
		}
	}()
	select {
	case r := <-done:
		if r.err != nil {
			return nil, broken(what, r.err)
		}
		return r.call, nil
	case <-ctx.Done():
		return nil, interrupted(ctx, what)
	}
}

func (c *Client) openNow(req *wire.Request) (*call, error) {
	c.opening.Lock()
	defer c.opening.Unlock()
	call := &call{}
	var err error
	for i := 0; i <= req.Streams && err == nil; i++ {
		var s *yamux.Stream
		if s, err = c.session.OpenStream(); err != nil {
			break
		}
		if i == 0 {
			call.control = s
			err = wire.WriteMessage(s, req)
		} else {
			call.data = append(call.data, s)
		}
	}
	if err != nil {
		call.closeNow()
		return nil, err
	}
	return call, nil
}

// closeGrace is how long a guest may leave the connection unread before the
// close of one request gives up the connection. A deadline reaches a call that
// waits for data or for the stream's window, but not one whose frame waits for
// the connection.
const closeGrace = 5 * time.Second

// close ends the streams, and with them every wait on them; the guest takes
// it for lost interest if it comes before its last reply.
func (c *call) close() {
	for _, s := range c.streams() {
		s.SetDeadline(past)
	}
	go func() { // it ends with the session at the latest
		t := time.AfterFunc(closeGrace, func() { c.control.Session().Close() })
		defer t.Stop()
		c.closeNow()
	}()
}

// past is a deadline that ends every wait.
var past = time.Unix(1, 0)

func (c *call) closeNow() {
	for _, s := range c.streams() {
		s.Close()
	}
}

func (c *call) streams() []*yamux.Stream {
	if c.control == nil {
		return nil
	}
	// The control stream first: a command learns that it is hung up before
	// its input ends.
	return append([]*yamux.Stream{c.control}, c.data...)
}

// reply waits for the next reply. An Error in it is returned as such. When
// ctx ends first, the call is closed.
func (c *call) reply(ctx context.Context, what string) (*wire.Reply, error) {
	stop := context.AfterFunc(ctx, c.close)
	reply, err := c.next(what)
	if !stop() {
		return nil, interrupted(ctx, what)
	}
	return reply, err
}

func (c *call) next(what string) (*wire.Reply, error) {
	var reply wire.Reply
	if err := wire.ReadMessage(c.control, wire.MaxReply, &reply); err != nil {
		return nil, broken(what, err)
	}
	if reply.Error != nil {
		return nil, fromGuest(reply.Error)
	}
	return &reply, nil
}

// errEnded is in the errors of requests that the guest's end left without
// their reply.
var errEnded = errors.New("the connection ended")

// broken is the error for an agent that is gone or doesn't keep to the
// protocol.
func broken(what string, err error) error {
	var e *api.Error
	if errors.As(err, &e) {
		return err
	}
	if errors.Is(err, yamux.ErrTimeout) {
		return api.Errorf(api.CodeCancelled, "%s: the request was closed", what)
	}
	// What a socket says has its path, which tells a user nothing.
	for _, end := range []error{yamux.ErrSessionShutdown, io.EOF, net.ErrClosed, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, end) {
			err = errEnded
		}
	}
	return api.Errorf(api.CodeUnavailable, "%s: %w", what, err).
		WithHint("see whether the instance is still running")
}

// interrupted is the error for a context that ended during what.
func interrupted(ctx context.Context, what string) error {
	code := api.CodeCancelled
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		code = api.CodeTimeout
	}
	return api.Errorf(code, "%s: no answer: %w", what, context.Cause(ctx))
}

// maxText bounds the texts that a guest puts into errors.
const maxText = 4 << 10

// fromGuest makes an error of the guest's fit to be shown and switched on.
func fromGuest(e *api.Error) error {
	code := e.Code
	if code.Status() == api.CodeInternal.Status() {
		code = api.CodeInternal // or one that doesn't exist
	}
	out := api.Errorf(code, "%s", printable(e.Message, maxText)).WithField(printable(e.Field, 100))
	if e.Hint != "" {
		out = out.WithHint("%s", printable(e.Hint, maxText))
	}
	return out
}

// printable shortens s to n bytes and takes out what a terminal would obey.
func printable(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, s)
}
