package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// dial connects to a socket of a running QEMU.
func dial(ctx context.Context, id, dir, name string) (*net.UnixConn, error) {
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
		return api.Errorf(api.CodeConflict, "guest %s: its QEMU is not running: %w", id, err)
	}
	return unanswered(id, err)
}

// unanswered gives an error the code that fits when QEMU should have answered
// and has not.
func unanswered(id string, err error) error {
	if err == nil || errors.As(err, new(*api.Error)) {
		return err
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return api.Errorf(api.CodeTimeout, "guest %s: QEMU doesn't answer: %w", id, err).
			WithHint("if it stays so, stop it with --force")
	}
	return fmt.Errorf("guest %s: %w", id, err)
}
