package keeper

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/cleave-project/cleave/api"
)

// Client speaks to one keeper. Its methods may be called from any goroutine;
// each call in progress has a connection of its own, and those are kept for
// the next. When the keeper ends, all calls fail with code "unavailable",
// also after another one has taken its place: that one must be connected to,
// and be told of its guests, before it can serve.
type Client struct {
	socket string
	boot   string // the keeper's incarnation

	mu     sync.Mutex
	idle   []*conn
	closed bool
}

// maxIdle is how many connections wait for the next call.
const maxIdle = 4

// Connect connects to a keeper that runs. If none listens on the socket, the
// error has the code "unavailable".
func Connect(ctx context.Context, socket string) (*Client, error) {
	c := &Client{socket: socket}
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	c.release(conn)
	return c, nil
}

// Close lets the connections go. The keeper and its guests stay.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, conn := range c.idle {
		conn.Close()
	}
	c.idle = nil
	return nil
}

// Start clones a guest's first process. It returns when the process has been
// executed, or with the reason why not and nothing left. It takes
// milliseconds and is not interrupted by the context, since a guest could be
// left that nobody knows of.
func (c *Client) Start(ctx context.Context, r *StartRequest) (Guest, error) {
	if err := ctx.Err(); err != nil {
		return Guest{}, c.failed("start", err)
	}
	if r.Exe == nil {
		return Guest{}, api.Errorf(api.CodeInvalid, "start guest %s: no executable", r.ID)
	}
	files := []*os.File{r.Exe}
	if r.Cgroup != nil {
		files = append(files, r.Cgroup)
	}
	files = append(files, r.Files...)
	message := &startMessage{
		Args: r.Args, Env: r.Env, Clone: r.Clone, UIDMap: r.UIDMap, GIDMap: r.GIDMap,
		Cgroup: r.Cgroup != nil, CgroupProcs: r.CgroupProcs,
		Terminal: r.Terminal, Stdin: r.Stdin, Dir: r.Dir, LogDir: r.LogDir, Owner: r.Owner,
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTimeout)
	defer cancel()
	return c.guest(ctx, &request{Op: opStart, ID: r.ID, Start: message}, files...)
}

const startTimeout = 30 * time.Second

// Signal sends a signal to a guest's first process.
func (c *Client) Signal(ctx context.Context, id string, sig syscall.Signal) error {
	_, err := c.call(ctx, &request{Op: opSignal, ID: id, Signal: int(sig)})
	return err
}

// List tells all guests, also those that have ended and are not forgotten,
// sorted by id.
func (c *Client) List(ctx context.Context) (guests []Guest, err error) {
	err = c.exchange(ctx, &request{Op: opList}, nil, func(r *reply) bool {
		guests = append(guests, r.Guests...)
		return r.More
	})
	return guests, err
}

// Forget drops the record of a guest that has ended; its log stays. For one
// that runs the error has the code "conflict", for an unknown one
// "not-found".
func (c *Client) Forget(ctx context.Context, id string) error {
	_, err := c.call(ctx, &request{Op: opForget, ID: id})
	return err
}

// Adopt gives a new keeper a guest that an earlier one started. It is no
// error if the keeper has it already, or if the guest has ended.
func (c *Client) Adopt(ctx context.Context, r AdoptRequest) (Guest, error) {
	return c.guest(ctx, &request{Op: opAdopt, Adopt: &r})
}

// Stop ends the keeper. If it holds a guest, or the record of an end, it goes
// on, and the error has the code "in-use".
func (c *Client) Stop(ctx context.Context) error {
	_, err := c.call(ctx, &request{Op: opStop})
	if err == nil {
		c.Close()
	}
	return err
}

// Exits delivers each exit from now on, once, after all output of the guest
// is in its log. A caller that calls List after Exits knows of all ends, of
// some perhaps twice. The channel is closed when the context ends or the
// keeper goes away.
func (c *Client) Exits(ctx context.Context) (<-chan Guest, error) {
	conn, _, _, err := c.open(ctx, &request{Op: opExits})
	if err != nil {
		return nil, err
	}
	exits := make(chan Guest)
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	go func() {
		defer close(exits)
		defer conn.Close()
		defer stop()
		for {
			var r reply
			files, err := conn.receive(&r)
			closeFiles(files)
			if err != nil || r.Guest == nil {
				return
			}
			select {
			case exits <- *r.Guest:
			case <-ctx.Done():
				return
			}
		}
	}()
	return exits, nil
}

// guest makes a call that is answered with a guest.
func (c *Client) guest(ctx context.Context, r *request, files ...*os.File) (Guest, error) {
	out, err := c.call(ctx, r, files...)
	if err != nil {
		return Guest{}, err
	}
	if out.Guest == nil {
		return Guest{}, api.Errorf(api.CodeInternal, "%s guest %s: the keeper's answer has no guest", r.Op, r.ID)
	}
	return *out.Guest, nil
}

// call makes a call with one answer.
func (c *Client) call(ctx context.Context, r *request, files ...*os.File) (out reply, err error) {
	err = c.exchange(ctx, r, files, func(r *reply) bool { out = *r; return false })
	return out, err
}

// exchange sends a request and hands each answer to more, until that says
// false.
func (c *Client) exchange(ctx context.Context, r *request, files []*os.File, more func(*reply) bool) error {
	conn, err := c.acquire(ctx)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	err = conn.send(r, files...)
	for again := true; err == nil && again; {
		var out reply
		var got []*os.File
		got, err = conn.receive(&out)
		closeFiles(got)
		if err == nil && out.Error != nil {
			stop()
			c.release(conn)
			return out.Error
		}
		again = err == nil && more(&out)
	}
	if err != nil || !stop() { // a deadline may be set by now
		conn.Close()
	} else {
		c.release(conn)
	}
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return c.failed(r.Op, err)
	}
	return nil
}

// open sends a request on a connection of its own, and hands out both that
// and the first answer.
func (c *Client) open(ctx context.Context, r *request) (*conn, *reply, []*os.File, error) {
	conn, err := c.acquire(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	var out reply
	var files []*os.File
	if err = conn.send(r); err == nil {
		files, err = conn.receive(&out)
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err == nil && out.Error == nil {
		return conn, &out, files, nil
	}
	closeFiles(files)
	conn.Close()
	if err != nil {
		return nil, nil, nil, c.failed(r.Op, err)
	}
	return nil, nil, nil, out.Error
}

// acquire takes a connection that waits, or makes one. What was given up
// before is not begun: a guest would be started that nobody knows of.
func (c *Client) acquire(ctx context.Context) (*conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, c.failed("request", err)
	}
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, api.Errorf(api.CodeUnavailable, "the connection to the keeper at %s is closed", c.socket)
	}
	if n := len(c.idle); n > 0 {
		conn := c.idle[n-1]
		c.idle = c.idle[:n-1]
		c.mu.Unlock()
		return conn, nil
	}
	c.mu.Unlock()
	return c.dial(ctx)
}

func (c *Client) release(conn *conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || len(c.idle) >= maxIdle {
		conn.Close()
		return
	}
	c.idle = append(c.idle, conn)
}

// dial connects and greets. The first time it learns the incarnation, later
// it insists on it.
func (c *Client) dial(ctx context.Context) (*conn, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unix", c.socket)
	if err != nil {
		return nil, c.failed("connect", err)
	}
	conn := &conn{nc.(*net.UnixConn)}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	conn.SetDeadline(time.Now().Add(helloTimeout))
	theirs, err := greet(conn)
	if err == nil && c.boot != "" && c.boot != theirs.Boot {
		err = api.Errorf(api.CodeUnavailable, "the keeper at %s was replaced by another (pid %d)", c.socket, theirs.PID)
	}
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if err != nil {
		conn.Close()
		return nil, c.failed("connect", err)
	}
	if c.boot == "" {
		c.boot = theirs.Boot
	}
	return conn, nil
}

func greet(conn *conn) (theirs hello, err error) {
	if err := conn.checkPeer(); err != nil {
		return theirs, api.Errorf(api.CodeForbidden, "%w", err)
	}
	if err := conn.send(hello{Protocol: protocolName, Oldest: oldestVersion, Newest: newestVersion}); err != nil {
		return theirs, err
	}
	files, err := conn.receive(&theirs)
	closeFiles(files)
	if err != nil {
		return theirs, err
	}
	if theirs.Error != nil {
		return theirs, theirs.Error
	}
	if _, refusal := agree(theirs); refusal != nil {
		return theirs, refusal
	}
	return theirs, nil
}

// failed says what the client was doing when the connection failed.
func (c *Client) failed(op string, err error) error {
	var e *api.Error
	switch {
	case errors.As(err, &e):
		return err
	case errors.Is(err, context.Canceled):
		return api.Errorf(api.CodeCancelled, "%s by the keeper at %s: %w", op, c.socket, err)
	case errors.Is(err, context.DeadlineExceeded):
		return api.Errorf(api.CodeTimeout, "%s by the keeper at %s: %w", op, c.socket, err)
	}
	return api.Errorf(api.CodeUnavailable, "%s by the keeper at %s: %w", op, c.socket, err)
}
