package keeper

import (
	"context"
	"io"
	"log/slog"
	"syscall"

	"github.com/cleave-project/cleave/api"
)

// Client speaks to one keeper. Its methods may be called from any goroutine.
type Client struct{}

var errSkeleton = api.Errorf(api.CodeUnavailable, "the keeper is not built yet")

func Connect(ctx context.Context, socket string) (*Client, error) { return nil, errSkeleton }
func Ensure(ctx context.Context, socket, binary string, log *slog.Logger) (c *Client, started bool, err error) {
	return nil, false, errSkeleton
}
func (c *Client) Close() error { return nil }
func (c *Client) Start(ctx context.Context, r *StartRequest) (Guest, error) {
	return Guest{}, errSkeleton
}
func (c *Client) Signal(ctx context.Context, id string, sig syscall.Signal) error {
	return errSkeleton
}
func (c *Client) List(ctx context.Context) ([]Guest, error)   { return nil, errSkeleton }
func (c *Client) Forget(ctx context.Context, id string) error { return errSkeleton }
func (c *Client) Adopt(ctx context.Context, r AdoptRequest) (Guest, error) {
	return Guest{}, errSkeleton
}
func (c *Client) Exits(ctx context.Context) (<-chan Guest, error) { return nil, errSkeleton }
func (c *Client) Attach(ctx context.Context, id string, opts AttachOptions) (*Attachment, error) {
	return nil, errSkeleton
}
func (c *Client) Stop(ctx context.Context) error { return errSkeleton }

// Attachment is a live connection to a guest's standard streams.
type Attachment struct{}

func (a *Attachment) Stdin() io.WriteCloser          { return nil }
func (a *Attachment) Stdout() io.Reader              { return nil }
func (a *Attachment) Stderr() io.Reader              { return nil }
func (a *Attachment) Terminal() bool                 { return false }
func (a *Attachment) Resize(cols, rows uint16) error { return errSkeleton }
func (a *Attachment) Exit(ctx context.Context) (api.ExitStatus, error) {
	return api.ExitStatus{}, errSkeleton
}
func (a *Attachment) Close() error { return nil }

func ReadLogs(ctx context.Context, dir string, opts LogOptions, yield func(LogEntry) error) error {
	return errSkeleton
}

func Main(socket string) error { return errSkeleton }
