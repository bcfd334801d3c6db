package guest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/agent/wire"
	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/image/layer"
)

// upper opens the root's writable layer. The overlay that has it as well is
// idle, and ends before the root is used again.
func (s *server) upper() (*os.File, error) {
	if s.disk == nil {
		return nil, api.Errorf(api.CodeConflict, "the guest's layer is in use").WithHint("stop the instance first")
	}
	fd, err := unix.Openat(int(s.disk.Fd()), "upper", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, errnoError(err, "opening the guest's layer")
	}
	return os.NewFile(uintptr(fd), "upper"), nil
}

// layer sends the root's writable layer.
func (s *server) layer(q *request) {
	upper, err := s.upper()
	if err != nil {
		q.fail(err)
		return
	}
	defer upper.Close()
	q.reply(wire.Reply{Started: true})
	defer q.releaseWhenClosing()()
	if err := layer.Write(context.Background(), q.data[0], upper); err != nil {
		q.fail(err)
		return
	}
	q.data[0].Close()
	q.reply(wire.Reply{Done: true})
}

// relayer makes the root's writable layer another one. What it was before
// is gone, also when that fails.
func (s *server) relayer(q *request) {
	defer q.releaseWhenClosing()()
	upper, err := s.upper()
	if err != nil {
		q.fail(err)
		return
	}
	defer upper.Close()
	if err := empty(upper); err != nil {
		q.fail(errnoError(unwrapPath(err), "emptying the guest's layer"))
		return
	}
	err = layer.Read(context.Background(), q.data[0], upper, layer.Options{})
	if err == nil {
		err = unix.Syncfs(int(upper.Fd()))
	}
	q.done(err)
}

// empty removes what is in a directory.
func empty(dir *os.File) error {
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()))
	if err != nil {
		return err
	}
	defer root.Close()
	entries, err := fs.ReadDir(root.FS(), ".")
	errs := []error{err}
	for _, e := range entries {
		errs = append(errs, root.RemoveAll(e.Name()))
	}
	return errors.Join(errs...)
}
