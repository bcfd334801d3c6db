package agent

import (
	"context"
	"errors"
	"io"
	"net"
)

var errSkeleton = errors.New("agent: being written")

// Client is one connection to a guest's agent.
type Client struct{}

// Dial speaks the hello on conn. It owns conn from then on and closes it when
// it fails.
func Dial(ctx context.Context, conn net.Conn) (*Client, error) { return nil, errSkeleton }

// Close ends the connection and every request on it.
func (c *Client) Close() error { return errSkeleton }

// Ping asks the agent who it is.
func (c *Client) Ping(ctx context.Context) (Info, error) { return Info{}, errSkeleton }

// Exec starts a command; ctx bounds the start only.
func (c *Client) Exec(ctx context.Context, req ExecRequest) (*Exec, error) { return nil, errSkeleton }

// Put extracts a tar stream below the directory path.
func (c *Client) Put(ctx context.Context, path string, tar io.Reader) error { return errSkeleton }

// Get is a tar stream of path.
func (c *Client) Get(ctx context.Context, path string) (io.ReadCloser, error) {
	return nil, errSkeleton
}

// Stat describes path, and not what it points to when it is a symbolic link.
func (c *Client) Stat(ctx context.Context, path string) (FileInfo, error) {
	return FileInfo{}, errSkeleton
}

// Exec is a command in the guest.
type Exec struct{}

// Stdin is the command's standard input; closing it is its end of file.
func (e *Exec) Stdin() io.WriteCloser { return nil }

// Stdout is the command's standard output, or its terminal's.
func (e *Exec) Stdout() io.Reader { return nil }

// Stderr is the command's standard error; nil with a terminal.
func (e *Exec) Stderr() io.Reader { return nil }

// Resize tells the terminal its new size.
func (e *Exec) Resize(cols, rows uint16) error { return errSkeleton }

// Signal sends a signal by name to the command's process group.
func (e *Exec) Signal(name string) error { return errSkeleton }

// Wait waits for the end of the command; 128+n when signal n ended it.
func (e *Exec) Wait(ctx context.Context) (code int, err error) { return 0, errSkeleton }

// Close detaches: a command that still runs is hung up.
func (e *Exec) Close() error { return errSkeleton }
