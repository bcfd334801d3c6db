package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Client is a Machine at the other end of a socket. Its calls come one after
// the other; one that is ended by its context ends the connection.
type Client struct {
	conn *net.UnixConn

	mu   sync.Mutex
	in   reader
	last uint64
}

var _ Machine = (*Client)(nil)

// Dial connects to a monitor.
func Dial(ctx context.Context, path string) (*Client, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	return NewClient(c.(*net.UnixConn)), nil
}

// NewClient takes over a connection.
func NewClient(c *net.UnixConn) *Client { return &Client{conn: c, in: reader{conn: c}} }

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// ask makes a request and waits for its reply.
func (c *Client) ask(ctx context.Context, do string, args, result any, files ...*os.File) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	c.last++
	r := request{ID: c.last, Do: do, Files: len(files)}
	var err error
	if args != nil {
		if r.Args, err = json.Marshal(args); err != nil {
			return err
		}
	}
	if err := c.send(&r, files); err != nil {
		return fmt.Errorf("ask the monitor for %s: %w", do, errors.Join(err, ctx.Err()))
	}
	line, err := c.in.line()
	if err != nil {
		return fmt.Errorf("ask the monitor for %s: %w", do, errors.Join(err, ctx.Err()))
	}
	var a reply
	switch err := json.Unmarshal(line, &a); {
	case err != nil:
		return fmt.Errorf("ask the monitor for %s: %w", do, err)
	case a.Error != "":
		return errors.New(a.Error)
	case result != nil:
		return json.Unmarshal(a.Result, result)
	}
	return nil
}

func (c *Client) send(r *request, files []*os.File) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	var oob []byte
	if len(files) > 0 {
		var fds []int
		for _, f := range files {
			fds = append(fds, int(f.Fd()))
		}
		oob = unix.UnixRights(fds...)
	}
	b = append(b, '\n')
	n, _, err := c.conn.WriteMsgUnix(b, oob, nil)
	if err == nil && n < len(b) {
		_, err = c.conn.Write(b[n:])
	}
	return err
}

// Status implements Machine.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.ask(ctx, "status", nil, &s)
}

// Metrics implements Machine.
func (c *Client) Metrics(ctx context.Context) (m Metrics, err error) {
	return m, c.ask(ctx, "metrics", nil, &m)
}

// Pause implements Machine.
func (c *Client) Pause(ctx context.Context) error { return c.ask(ctx, "pause", nil, nil) }

// Resume implements Machine.
func (c *Client) Resume(ctx context.Context) error { return c.ask(ctx, "resume", nil, nil) }

// PowerButton implements Machine.
func (c *Client) PowerButton(ctx context.Context) error {
	return c.ask(ctx, "power-button", nil, nil)
}

// Reset implements Machine.
func (c *Client) Reset(ctx context.Context) error { return c.ask(ctx, "reset", nil, nil) }

// Stop implements Machine.
func (c *Client) Stop(ctx context.Context) error { return c.ask(ctx, "stop", nil, nil) }

// AddDisk implements Machine. The files stay the caller's too.
func (c *Client) AddDisk(ctx context.Context, d Disk, f, changes *os.File) error {
	if changes == nil {
		return c.ask(ctx, "add-disk", d, nil, f)
	}
	return c.ask(ctx, "add-disk", d, nil, f, changes)
}

// AddNet implements Machine. The files stay the caller's too.
func (c *Client) AddNet(ctx context.Context, n Net, files []*os.File) error {
	return c.ask(ctx, "add-net", n, nil, files...)
}

// Remove implements Machine.
func (c *Client) Remove(ctx context.Context, r Remove) error { return c.ask(ctx, "remove", r, nil) }

// SetLimits implements Machine.
func (c *Client) SetLimits(ctx context.Context, l SetLimits) error {
	return c.ask(ctx, "set-limits", l, nil)
}

// SetMemory implements Machine.
func (c *Client) SetMemory(ctx context.Context, m SetMemory) error {
	return c.ask(ctx, "set-memory", m, nil)
}

// ResizeDisk implements Machine.
func (c *Client) ResizeDisk(ctx context.Context, r ResizeDisk) error {
	return c.ask(ctx, "resize-disk", r, nil)
}

// Save implements Machine. The files stay the caller's too.
func (c *Client) Save(ctx context.Context, o Save, state, memory *os.File) error {
	return c.ask(ctx, "save", o, nil, state, memory)
}
