package qmp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of what is taken from the other side.
const (
	// MaxMessage is the size of a message. The largest that QEMU has for us,
	// the possible CPUs of a large machine, is a tenth of it.
	MaxMessage = 1 << 20
	// maxEvents wait to be read; more are dropped.
	maxEvents = 256
)

// Limit is the time of a command whose context has no deadline.
const Limit = 10 * time.Second

// ErrClosed is the end of a connection that Close ended.
var ErrClosed = fmt.Errorf("QEMU's monitor: %w", net.ErrClosed)

// Error is a command's failure as QEMU tells it.
type Error struct {
	Command string
	Class   string
	Desc    string
}

func (e *Error) Error() string { return fmt.Sprintf("QEMU refuses %s: %s", e.Command, e.Desc) }

// Version is QEMU's.
type Version struct{ Major, Minor, Micro int }

func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro) }

// AtLeast compares with a version.
func (v Version) AtLeast(major, minor int) bool {
	return v.Major > major || v.Major == major && v.Minor >= minor
}

// Event is something that QEMU tells unasked.
type Event struct {
	Name string
	Data json.RawMessage // an object, or empty
	Time time.Time
}

// Client is a connection.
type Client struct {
	conn    *net.UnixConn
	version Version
	events  chan Event
	done    chan struct{} // closed when nothing more is read
	writing chan struct{} // holds one token: who has it may write

	mu      sync.Mutex
	last    uint64
	waiting map[uint64]chan message
	err     error // why done is closed
}

// message is whatever QEMU sends.
type message struct {
	Greeting *struct {
		Version struct {
			QEMU struct {
				Major int `json:"major"`
				Minor int `json:"minor"`
				Micro int `json:"micro"`
			} `json:"qemu"`
		} `json:"version"`
	} `json:"QMP"`
	ID     *uint64         `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

// Dial connects to a monitor's socket.
func Dial(ctx context.Context, path string) (*Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("connect to QEMU's monitor: %w", err)
	}
	return New(ctx, conn.(*net.UnixConn))
}

// New speaks on a connection, which is the Client's from then on, and closed
// when New fails.
func New(ctx context.Context, conn *net.UnixConn) (*Client, error) {
	c := &Client{
		conn: conn, events: make(chan Event, maxEvents), done: make(chan struct{}),
		writing: make(chan struct{}, 1), waiting: map[uint64]chan message{},
	}
	r := bufio.NewReaderSize(conn, 4096)
	if err := c.greet(ctx, r); err != nil {
		conn.Close()
		return nil, fmt.Errorf("greet QEMU's monitor: %w", err)
	}
	go c.read(r)
	if err := c.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// greet reads the first message (qmp-spec, "Server Greeting").
func (c *Client) greet(ctx context.Context, r *bufio.Reader) error {
	ctx, cancel := limited(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetReadDeadline(time.Unix(1, 0)) })
	m, err := readMessage(r)
	if !stop() {
		return context.Cause(ctx)
	}
	if err != nil {
		return err
	}
	if m.Greeting == nil {
		return errors.New("what answers is no monitor of QEMU")
	}
	c.version = Version(m.Greeting.Version.QEMU)
	return nil
}

// limited gives a context without a deadline one.
func limited(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, Limit, fmt.Errorf("QEMU has not answered for %v: %w", Limit, context.DeadlineExceeded))
}

// Version is QEMU's, as it says.
func (c *Client) Version() Version { return c.version }

// Events delivers what QEMU tells unasked, and is closed with the connection.
// Whoever doesn't read it loses events.
func (c *Client) Events() <-chan Event { return c.events }

// Done is closed when the connection has ended and all that came before is in
// Events.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err is why the connection has ended; nil while it hasn't.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection, and returns when nothing of it is left.
func (c *Client) Close() error {
	c.fail(ErrClosed)
	<-c.done
	return nil
}

// fail ends the connection for a reason, of which the first counts.
func (c *Client) fail(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	c.mu.Unlock()
	c.conn.Close()
}

// read takes in what comes until the connection ends.
func (c *Client) read(r *bufio.Reader) {
	defer close(c.done)
	defer close(c.events)
	for {
		m, err := readMessage(r)
		if err != nil {
			c.fail(fmt.Errorf("read from QEMU's monitor: %w", err))
			return
		}
		switch {
		case m.Event != "":
			e := Event{Name: m.Event, Data: m.Data, Time: time.Unix(m.Timestamp.Seconds, m.Timestamp.Microseconds*1000)}
			select {
			case c.events <- e:
			default:
			}
		case m.ID != nil:
			c.mu.Lock()
			w := c.waiting[*m.ID]
			delete(c.waiting, *m.ID)
			c.mu.Unlock()
			if w != nil { // else nobody waits any more
				w <- m
			}
		case m.Error != nil: // without an id it answers what it could not parse
			c.fail(fmt.Errorf("QEMU's monitor doesn't understand: %s", m.Error.Desc))
			return
		}
	}
}

// readMessage reads one line.
func readMessage(r *bufio.Reader) (message, error) {
	var m message
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > MaxMessage {
			return m, fmt.Errorf("a message is larger than %d bytes", MaxMessage)
		}
		line = append(line, part...)
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			if err == io.EOF && len(line) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return m, err
		}
		if len(bytes.TrimSpace(line)) > 0 {
			break
		}
		line = line[:0]
	}
	if err := json.Unmarshal(line, &m); err != nil {
		return m, fmt.Errorf("a message is no valid one: %w", err)
	}
	return m, nil
}

// Execute runs a command: args is what encodes to its arguments, or nil, and
// result, if not nil, gets what it returns.
func (c *Client) Execute(ctx context.Context, command string, args, result any) error {
	return c.ExecuteFile(ctx, command, args, nil, result)
}

// ExecuteFile is Execute of a command that takes a descriptor.
func (c *Client) ExecuteFile(ctx context.Context, command string, args any, f *os.File, result any) error {
	ctx, cancel := limited(ctx)
	defer cancel()
	answer := make(chan message, 1)
	c.mu.Lock()
	c.last++
	id := c.last
	c.waiting[id] = answer
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.waiting, id)
		c.mu.Unlock()
	}()
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, args, id})
	if err != nil {
		return fmt.Errorf("encode %s: %w", command, err)
	}
	if err := c.write(ctx, append(line, '\n'), f); err != nil {
		return fmt.Errorf("ask QEMU for %s: %w", command, err)
	}
	var m message
	select {
	case m = <-answer:
	case <-ctx.Done():
		return fmt.Errorf("ask QEMU for %s: %w", command, context.Cause(ctx))
	case <-c.done:
		select {
		case m = <-answer: // it came with the end
		default:
			return fmt.Errorf("ask QEMU for %s: %w", command, c.Err())
		}
	}
	if m.Error != nil {
		return &Error{Command: command, Class: m.Error.Class, Desc: m.Error.Desc}
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(m.Return, result); err != nil {
		return fmt.Errorf("QEMU's answer to %s is no valid one: %w", command, err)
	}
	return nil
}

// write sends a line, with a descriptor on its first byte (qmp-spec has no
// clause; monitor/fds.c takes the one that came with the command). What is
// sent by half leaves nothing to go on with, so it ends the connection.
func (c *Client) write(ctx context.Context, line []byte, f *os.File) error {
	select {
	case c.writing <- struct{}{}:
		defer func() { <-c.writing }()
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-c.done:
		return c.Err()
	}
	var rights []byte
	if f != nil {
		rights = unix.UnixRights(int(f.Fd()))
	}
	_ = c.conn.SetWriteDeadline(time.Time{})
	expired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = c.conn.SetWriteDeadline(time.Unix(1, 0))
		close(expired)
	})
	defer func() {
		if !stop() {
			<-expired // or it would hit who writes next
		}
	}()
	n, _, err := c.conn.WriteMsgUnix(line, rights, nil)
	for err == nil && n < len(line) {
		line = line[n:]
		n, err = c.conn.Write(line)
	}
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		c.fail(err)
	}
	return err
}
