package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// Listen makes a listening socket with a name in a guest's runtime directory,
// for its monitor. Sockets are named by a descriptor of the directory, since
// a path may have 107 bytes only.
func Listen(dir, name string) (*os.File, error) {
	if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), name), Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("make the guest's %s: %w", name, err)
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	return l.File()
}

// Dial connects to a socket in the runtime directory of a running guest.
func Dial(ctx context.Context, id, dir, name string) (*net.UnixConn, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, gone(id, err)
	}
	defer d.Close()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", filepath.Join(fmt.Sprintf("/proc/self/fd/%d", d.Fd()), name))
	if err != nil {
		return nil, gone(id, err)
	}
	return conn.(*net.UnixConn), nil
}

// gone gives the error of a failed connection a code.
func gone(id string, err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return ending(id)
	}
	return Unanswered(id, err)
}

// ending is the error for a monitor that has gone: what is asked of its guest
// comes too late.
func ending(id string) error {
	return api.Errorf(api.CodeConflict, "guest %s is ending", id).WithHint("see whether it has ended, and why, by `cleave show`")
}

// HungUp tells whether a monitor has gone while it was asked for something.
func HungUp(err error) bool {
	if errors.As(err, new(*api.Error)) {
		return false
	}
	return slices.ContainsFunc([]error{io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, unix.ECONNRESET, unix.EPIPE}, func(e error) bool { return errors.Is(err, e) })
}

// Unanswered gives an error the code that fits when a monitor should have
// answered and has not, or has gone.
func Unanswered(id string, err error) error {
	if err == nil || errors.As(err, new(*api.Error)) {
		return err
	}
	if HungUp(err) {
		return ending(id)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return api.Errorf(api.CodeTimeout, "guest %s: its monitor doesn't answer: %w", id, err).
			WithHint("if it stays so, stop it with --force")
	}
	return fmt.Errorf("guest %s: %w", id, err)
}
