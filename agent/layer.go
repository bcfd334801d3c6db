package agent

import (
	"context"
	"io"

	"github.com/cleave-project/cleave/agent/wire"
)

// Layer is the writable layer of a machine under maintenance, as package
// layer writes it. The stream is the guest's word. ctx bounds the whole.
func (c *Client) Layer(ctx context.Context) (io.ReadCloser, error) {
	return c.get(ctx, "copying the guest's layer", &wire.Request{Op: wire.OpLayer, Streams: 1})
}

// SetLayer replaces the writable layer of a machine under maintenance by one
// that package layer wrote. It returns when that is on the disk.
func (c *Client) SetLayer(ctx context.Context, layer io.Reader) error {
	return c.put(ctx, "copying to the guest's layer", &wire.Request{Op: wire.OpRelayer, Streams: 1}, layer)
}
