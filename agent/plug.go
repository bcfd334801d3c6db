package agent

import (
	"context"

	"github.com/cleave-project/cleave/agent/wire"
)

// Volume is a disk of a machine and where it is mounted.
type Volume = wire.Volume

// Link is an interface of a machine and what it is to have.
type Link = wire.Link

// Mount has a machine made of an image mount a disk that it has, or gets in a
// moment. One that is mounted there already is no error.
func (c *Client) Mount(ctx context.Context, v Volume) error {
	return c.do(ctx, "mounting "+v.Target+" in the guest", &wire.Request{Op: wire.OpMount, Volume: &v})
}

// Unmount takes a disk out of the machine's file tree. When the guest uses it
// that is an error with the code "in-use", and it stays mounted.
func (c *Client) Unmount(ctx context.Context, v Volume) error {
	return c.do(ctx, "unmounting "+v.Target+" in the guest", &wire.Request{Op: wire.OpUnmount, Volume: &v})
}

// Grow has the file system on a disk use all of it, which has become larger.
func (c *Client) Grow(ctx context.Context, disk string) error {
	return c.do(ctx, "growing the disk "+disk+" in the guest", &wire.Request{Op: wire.OpGrow, Volume: &Volume{Disk: disk}})
}

// Link gives an interface, that the machine has or gets in a moment, its name
// and addresses.
func (c *Client) Link(ctx context.Context, l Link) error {
	return c.do(ctx, "configuring "+l.Name+" in the guest", &wire.Request{Op: wire.OpLink, Link: &l})
}
