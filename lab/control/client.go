package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/agent"
	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/lab"
)

// Client talks with a lab's process.
type Client struct {
	// Dir is the lab's directory.
	Dir string
	// Tell hears what is done; may be nil.
	Tell func(what string)
}

// Start starts a lab's process: command, whose last arguments are to make it
// call Serve with the directory and the image, and to write a line to its
// descriptor 3 when that is ready. The process outlives this one.
func (c *Client) Start(ctx context.Context, command ...string) error {
	running, err := removeLeft(c.Dir)
	if err != nil {
		return fmt.Errorf("remove what a lab left in %s: %w", c.Dir, err)
	}
	if running {
		return nil
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(c.Dir, fileLog), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	p := exec.Command(command[0], command[1:]...)
	p.Stdout, p.Stderr, p.ExtraFiles = log, log, []*os.File{w}
	p.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = p.Start()
	w.Close()
	if err != nil {
		return fmt.Errorf("start the lab's process: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { r.Close() })
	defer stop()
	if _, err := bufio.NewReader(r).ReadString('\n'); err != nil {
		_ = p.Wait() // it has closed the pipe: it ends
		said, _ := os.ReadFile(log.Name())
		return fmt.Errorf("the lab's process didn't start: %s", said)
	}
	return p.Process.Release()
}

// errDown is what is asked of a lab that isn't there.
func errDown() error {
	return api.Errorf(api.CodeNotFound, "there is no lab").WithHint("`lab up` makes one")
}

// dial sends a request.
func (c *Client) dial(ctx context.Context, q request) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", filepath.Join(c.Dir, fileSocket))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, errDown()
	}
	if err != nil {
		return nil, err
	}
	if err := json.NewEncoder(conn).Encode(q); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// last reads replies up to the last one.
func (c *Client) last(r *bufio.Reader) (json.RawMessage, error) {
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			return nil, fmt.Errorf("the lab's process has gone: %w", err)
		}
		var a reply
		if err := json.Unmarshal(line, &a); err != nil {
			return nil, err
		}
		if a.Tell != "" && c.Tell != nil {
			c.Tell(a.Tell)
		}
		switch {
		case a.Error != nil:
			return nil, a.Error
		case a.Done:
			return a.Result, nil
		}
	}
}

// ask sends a request and waits for its result.
func (c *Client) ask(ctx context.Context, q request, result any) error {
	conn, err := c.dial(ctx, q)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	b, err := c.last(bufio.NewReader(conn))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil || result == nil {
		return err
	}
	return json.Unmarshal(b, result)
}

// Status asks for what there is.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	err := c.ask(ctx, request{Op: opList}, &s)
	return s, err
}

// Add adds hosts and boots them.
func (c *Client) Add(ctx context.Context, specs ...lab.Spec) error {
	return c.ask(ctx, request{Op: opAdd, Specs: specs}, nil)
}

// Boot boots hosts that are off.
func (c *Client) Boot(ctx context.Context, hosts ...string) error {
	return c.ask(ctx, request{Op: opBoot, Hosts: hosts}, nil)
}

// Link sets rules of the wire.
func (c *Client) Link(ctx context.Context, change lab.Change) error {
	return c.ask(ctx, request{Op: opLink, Link: &change}, nil)
}

// Kill ends hosts at once.
func (c *Client) Kill(ctx context.Context, hosts ...string) error {
	return c.ask(ctx, request{Op: opKill, Hosts: hosts}, nil)
}

// LosePower ends hosts at once, and returns how many bytes their disks lost.
func (c *Client) LosePower(ctx context.Context, hosts ...string) (lost int64, err error) {
	err = c.ask(ctx, request{Op: opPower, Hosts: hosts}, &lost)
	return lost, err
}

// PowerOff shuts hosts down.
func (c *Client) PowerOff(ctx context.Context, hosts ...string) error {
	return c.ask(ctx, request{Op: opOff, Hosts: hosts}, nil)
}

// Pause stops the time of hosts, Resume lets it go on.
func (c *Client) Pause(ctx context.Context, hosts ...string) error {
	return c.ask(ctx, request{Op: opPause, Hosts: hosts}, nil)
}

// Resume is the end of Pause.
func (c *Client) Resume(ctx context.Context, hosts ...string) error {
	return c.ask(ctx, request{Op: opResume, Hosts: hosts}, nil)
}

// Agent connects to a host's agent. The client must be closed.
func (c *Client) Agent(ctx context.Context, host string) (*agent.Client, error) {
	conn, err := c.dial(ctx, request{Op: opDial, Hosts: []string{host}})
	if err != nil {
		return nil, err
	}
	r := bufio.NewReader(conn)
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	_, err = c.last(r)
	stop()
	if err != nil {
		conn.Close()
		return nil, err
	}
	return agent.Dial(ctx, &ahead{conn, r})
}

// ahead is a connection of which a part was read.
type ahead struct {
	net.Conn
	r io.Reader
}

func (a *ahead) Read(p []byte) (int, error) { return a.r.Read(p) }

// Down ends the lab, and returns when nothing of it is left. It is no error
// if there is none.
func (c *Client) Down(ctx context.Context) error {
	conn, err := c.dial(ctx, request{Op: opDown})
	if err == nil {
		stop := context.AfterFunc(ctx, func() { conn.Close() })
		_, _ = io.Copy(io.Discard, conn) // to its end
		stop()
		conn.Close()
	} else if api.AsError(err).Code != api.CodeNotFound {
		return err
	}
	// Its process holds the lock until it ends.
	f, err := os.Open(filepath.Join(c.Dir, fileLock))
	if err != nil {
		return nil // there is nothing any more
	}
	defer f.Close()
	if err := flock(ctx, f); err != nil {
		return fmt.Errorf("the lab's process has not ended: %w", err)
	}
	_, err = removeLeft(c.Dir)
	return err
}

// flock waits for the lock of a file.
func flock(ctx context.Context, f *os.File) error {
	got := make(chan error, 1)
	go func() { got <- unix.Flock(int(f.Fd()), unix.LOCK_EX) }() // it ends with the lock's holder
	select {
	case err := <-got:
		return errors.Join(err, unix.Flock(int(f.Fd()), unix.LOCK_UN))
	case <-ctx.Done():
		return ctx.Err()
	}
}
