package qemu

import (
	"bytes"
	"context"
	"fmt"
	"image/png"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine/machine"
	"github.com/cleave-project/cleave/engine/qemu/ppm"
	"github.com/cleave-project/cleave/engine/qemu/qmp"
)

// screen finds a guest that has one, and its connection.
func (e *Engine) screen(ctx context.Context, id string) (*qmp.Client, error) {
	g, c, _, err := e.guest(ctx, id)
	if err != nil {
		return nil, err
	}
	if !g.Firmware {
		return nil, api.Errorf(api.CodeUnsupported, "guest %s has no screen: it was made of an image", id).
			WithHint("systems of their own have one; its output and console are to be had by logs and console")
	}
	return c, nil
}

// VNC implements engine.Display: by a pair of sockets, since QEMU listens on
// none.
func (e *Engine) VNC(ctx context.Context, id string) (net.Conn, error) {
	c, err := e.screen(ctx, id)
	if err != nil {
		return nil, err
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("connect to the guest's screen: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "vnc"), os.NewFile(uintptr(fds[1]), "vnc")
	defer ours.Close()
	defer theirs.Close()
	if err := c.VNC(ctx, theirs); err != nil {
		return nil, machine.Unanswered(id, err)
	}
	return net.FileConn(ours)
}

// Screenshot implements engine.Display.
func (e *Engine) Screenshot(ctx context.Context, id string) ([]byte, error) {
	c, err := e.screen(ctx, id)
	if err != nil {
		return nil, err
	}
	f, err := screendump(ctx, c)
	if err != nil {
		return nil, machine.Unanswered(id, err)
	}
	defer f.Close()
	img, err := ppm.Decode(io.LimitReader(f, ppm.MaxSize))
	if err != nil {
		return nil, fmt.Errorf("guest %s: the picture of its screen: %w", id, err)
	}
	var b bytes.Buffer
	err = (&png.Encoder{CompressionLevel: png.BestSpeed}).Encode(&b, img)
	return b.Bytes(), err
}

// screendump has QEMU write its screen to memory.
func screendump(ctx context.Context, c *qmp.Client) (*os.File, error) {
	fd, err := unix.MemfdCreate("screen", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "screen")
	// QEMU opens for writing only, and takes no descriptor that can do more.
	w, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), os.O_WRONLY, 0)
	if err != nil {
		f.Close()
		return nil, err
	}
	defer w.Close()
	const label = "screen"
	path, err := c.AddFile(ctx, w, label)
	if err == nil {
		err = c.Screendump(ctx, path)
		if clean := c.RemoveFiles(ctx, label, ""); err == nil {
			err = clean
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
