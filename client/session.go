package client

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"sync"

	"github.com/cleave-project/cleave/api"
	"github.com/coder/websocket"
)

// The channels of a stream: the first byte of every message.
const (
	channelStdin byte = iota
	channelStdout
	channelStderr
	channelControl
)

// maxControl bounds a control message.
const maxControl = 1 << 20

// Exit is how a command ended.
type Exit struct {
	Code   int    `json:"code"`
	Signal string `json:"signal,omitempty"`
}

// ErrDetached is what Run returns after Detach.
var ErrDetached = errors.New("detached")

// control is a control message of either direction.
type control struct {
	Resize *size      `json:"resize,omitempty"`
	Signal string     `json:"signal,omitempty"`
	EOF    bool       `json:"eof,omitempty"`
	Exit   *Exit      `json:"exit,omitempty"`
	Error  *api.Error `json:"error,omitempty"`
}

type size struct {
	Cols uint16 `json:"cols"`
	Rows uint16 `json:"rows"`
}

// Session is an attachment to a command in a guest. Run drives it; Resize,
// Signal and Detach may be called from other goroutines meanwhile.
type Session struct {
	conn     *websocket.Conn
	detached chan struct{}
	once     sync.Once
}

// Streams are the caller's ends of a session; nil ones are not used.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Exec starts a command in a running guest.
func (c *Client) Exec(ctx context.Context, n string, r api.ExecRequest) (*Session, error) {
	return c.session(ctx, request{method: http.MethodPost, path: name("instances", n) + "/exec", body: r})
}

// Console attaches to the entry point of a guest.
func (c *Client) Console(ctx context.Context, n string, r api.ConsoleRequest) (*Session, error) {
	return c.session(ctx, request{method: http.MethodPost, path: name("instances", n) + "/console", body: r})
}

// session gets a ticket and opens its stream.
func (c *Client) session(ctx context.Context, r request) (*Session, error) {
	t, err := do[api.Ticket](ctx, c, r)
	if err != nil {
		return nil, err
	}
	conn, err := c.stream(ctx, t)
	if err != nil {
		return nil, err
	}
	return &Session{conn: conn, detached: make(chan struct{})}, nil
}

// stream opens what a ticket is for.
func (c *Client) stream(ctx context.Context, t *api.Ticket) (*websocket.Conn, error) {
	u := c.base
	u.Scheme = map[string]string{"http": "ws", "https": "wss"}[u.Scheme]
	opts := &websocket.DialOptions{HTTPClient: c.http, HTTPHeader: http.Header{}}
	c.header(opts.HTTPHeader)
	conn, resp, err := websocket.Dial(ctx, u.String()+t.URL, opts) //nolint:bodyclose // Dial leaves nothing to close
	if err != nil {
		if resp != nil && resp.StatusCode >= 300 {
			return nil, problem(resp)
		}
		return nil, c.unreachable(err)
	}
	conn.SetReadLimit(-1) // readers take messages of any size piece by piece
	return conn, nil
}

// Run copies the streams until the command ends and returns how it ended.
// It ends early, with an error, when ctx ends, the daemon goes away or an
// output can't be written. The goroutine that reads Stdin ends with the next
// read that returns after Run did: no reader can be interrupted in general.
func (s *Session) Run(ctx context.Context, st Streams) (Exit, error) {
	defer s.conn.CloseNow()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if st.Stdin != nil {
		go s.send(ctx, st.Stdin)
	}
	buf := make([]byte, 64<<10)
	for {
		exit, err := s.receive(ctx, st, buf)
		select {
		case <-s.detached:
			return Exit{}, ErrDetached
		default:
		}
		switch {
		case exit != nil:
			s.conn.Close(websocket.StatusNormalClosure, "")
			return *exit, nil
		case err != nil && ctx.Err() != nil:
			return Exit{}, ctx.Err()
		case err != nil:
			return Exit{}, err
		}
	}
}

// receive handles one message.
func (s *Session) receive(ctx context.Context, st Streams, buf []byte) (*Exit, error) {
	_, r, err := s.conn.Reader(ctx)
	if err != nil {
		return nil, api.Errorf(api.CodeUnavailable, "the stream broke off before the command ended: %w", err)
	}
	n, err := io.ReadAtLeast(r, buf, 1)
	if err != nil {
		return nil, api.Errorf(api.CodeInternal, "an empty message on the stream")
	}
	var out io.Writer
	switch buf[0] {
	case channelStdout:
		out = st.Stdout
	case channelStderr:
		out = st.Stderr
	case channelControl:
		return s.control(io.LimitReader(r, maxControl), buf[1:n])
	}
	if out == nil {
		out = io.Discard
	}
	if _, err := out.Write(buf[1:n]); err != nil {
		return nil, err
	}
	_, err = io.CopyBuffer(onlyWriter{out}, r, buf)
	return nil, err
}

// onlyWriter hides ReadFrom, so that CopyBuffer uses the buffer it is given.
type onlyWriter struct{ io.Writer }

func (s *Session) control(r io.Reader, begun []byte) (*Exit, error) {
	rest, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	var m control
	if err := json.Unmarshal(append(begun[:len(begun):len(begun)], rest...), &m); err != nil {
		return nil, api.Errorf(api.CodeInternal, "a control message that can't be read: %w", err)
	}
	if m.Error != nil {
		return nil, m.Error
	}
	return m.Exit, nil
}

// send copies stdin, then says that it ended.
func (s *Session) send(ctx context.Context, stdin io.Reader) {
	buf := make([]byte, 64<<10)
	buf[0] = channelStdin
	for {
		n, err := stdin.Read(buf[1:])
		if n > 0 && s.conn.Write(ctx, websocket.MessageBinary, buf[:1+n]) != nil {
			return
		}
		if errors.Is(err, ErrDetached) {
			s.Detach()
			return
		}
		if err != nil {
			_ = s.tell(ctx, control{EOF: true}) // Run learns what is wrong with the connection
			return
		}
	}
}

// tell sends a control message.
func (s *Session) tell(ctx context.Context, m control) error {
	p, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return s.conn.Write(ctx, websocket.MessageBinary, append([]byte{channelControl}, p...))
}

// Resize tells the size of the caller's terminal.
func (s *Session) Resize(ctx context.Context, cols, rows uint16) error {
	return s.tell(ctx, control{Resize: &size{Cols: cols, Rows: rows}})
}

// Signal sends a signal, named like SIGINT, to the command.
func (s *Session) Signal(ctx context.Context, sig string) error {
	return s.tell(ctx, control{Signal: sig})
}

// Detach leaves the command running and ends Run with ErrDetached. A Stdin
// whose Read returns ErrDetached does the same.
func (s *Session) Detach() {
	s.once.Do(func() {
		close(s.detached)
		s.conn.Close(websocket.StatusNormalClosure, "detached")
	})
}
