package dir

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/internal/loop"
	"github.com/cleave-project/cleave/storage"
	"github.com/cleave-project/cleave/storage/internal/fsmount"
)

type pool struct {
	config   storage.Config
	lock     *os.File
	volumes  string // Source/volumes, which only root may enter
	trash    string // Source/trash, the same
	run      string // mount points
	projects *projects
	reflink  bool
	gate     *storage.Gate

	background sync.WaitGroup
	stop       context.CancelFunc // ends the sweep of the trash, which is part of it

	mu       sync.Mutex
	loops    map[loop.Backing]string  // guarded by mu: where files were last attached
	settling map[string]chan struct{} // guarded by mu: volumes that settleDevice is at
}

// Open opens the pool, and makes it if it isn't there.
func Open(ctx context.Context, c storage.Config) (_ storage.Driver, err error) {
	if c.Name == "" || filepath.Base(c.Name) != c.Name {
		return nil, api.Errorf(api.CodeInvalid, "open pool %q: not a name", c.Name)
	}
	if os.Geteuid() != 0 {
		return nil, api.Errorf(api.CodeForbidden, "open pool %q: files of many owners need root", c.Name).
			WithHint("run the daemon as root")
	}
	source, err := filepath.Abs(c.Source)
	if err != nil {
		return nil, err
	}
	run, err := fsmount.Point(filepath.Join(c.Run, c.Name))
	if err != nil {
		return nil, fmt.Errorf("open pool %q: %w", c.Name, err)
	}
	p := &pool{config: c, gate: storage.NewGate(c.Name), volumes: filepath.Join(source, "volumes"), trash: filepath.Join(source, "trash"), run: run}
	if err := os.MkdirAll(source, 0o700); err != nil {
		return nil, fmt.Errorf("make directory of pool %q: %w", c.Name, err)
	}
	if p.lock, err = storage.Lock(source); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			p.lock.Close()
		}
	}()
	for _, dir := range []string{p.volumes, p.trash} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("open pool %q: %w", c.Name, err)
		}
	}
	if p.projects, err = openProjects(p.volumes); err != nil {
		return nil, fmt.Errorf("open pool %q: %w", c.Name, err)
	}
	p.reflink = canReflink(p.trash)
	p.loops, p.settling = loop.Attached(), make(map[string]chan struct{})
	old, err := readNames(p.trash)
	if err == nil {
		err = p.sweep(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("open pool %q: remove what was left half done: %w", c.Name, err)
	}
	background, stop := context.WithCancel(context.Background())
	p.stop = stop
	p.background.Go(func() {
		// What can't be removed is in nobody's way; the next Open tries again.
		_ = p.emptyTrash(background, old)
	})
	return p, nil
}

// sweep removes what earlier daemons left half made or half deleted, and
// mount points of volumes that are gone.
func (p *pool) sweep(ctx context.Context) error {
	names, err := readNames(p.volumes)
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasPrefix(name, ".") {
			if err := p.discard(ctx, name); err != nil {
				return err
			}
		}
	}
	points, err := readNames(p.run)
	if err != nil {
		return err
	}
	for _, name := range points {
		if !slices.Contains(names, name) {
			if err := p.unmount(name); err != nil && !errors.Is(err, unix.EBUSY) {
				return err
			}
		}
	}
	return nil
}

func readNames(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

// canReflink tries to share blocks between two files.
func canReflink(dir string) bool {
	var fds [2]int
	for i := range fds {
		fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return false
		}
		defer unix.Close(fd)
		fds[i] = fd
	}
	if _, err := unix.Write(fds[0], make([]byte, 4096)); err != nil {
		return false
	}
	return unix.IoctlFileClone(fds[1], fds[0]) == nil
}

// List implements storage.Driver.
func (p *pool) List(context.Context) ([]string, error) {
	leave, err := p.gate.Enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	names, err := readNames(p.volumes)
	if err != nil {
		return nil, fmt.Errorf("list volumes of pool %q: %w", p.config.Name, err)
	}
	names = slices.DeleteFunc(names, func(name string) bool { return strings.HasPrefix(name, ".") })
	slices.Sort(names)
	return names, nil
}

// Status implements storage.Driver.
func (p *pool) Status(ctx context.Context) (api.PoolStatus, error) {
	ids, err := p.List(ctx)
	if err != nil {
		return api.PoolStatus{}, err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(p.volumes, &st); err != nil {
		return api.PoolStatus{}, fmt.Errorf("get free space of pool %q: %w", p.config.Name, err)
	}
	s := api.PoolStatus{State: "ready", Path: p.volumes, Quota: "loop", Reflink: p.reflink, Volumes: len(ids)}
	if p.projects != nil {
		s.Quota = "project"
	}
	if st.Flags&unix.ST_RDONLY != 0 {
		s.State = "read-only: the file system of " + p.volumes + " is"
	}
	s.Total = api.Bytes(st.Blocks) * api.Bytes(st.Bsize)
	s.Used = s.Total - api.Bytes(st.Bavail)*api.Bytes(st.Bsize)
	return s, nil
}

// Close implements storage.Driver.
func (p *pool) Close() error {
	leave, err := p.gate.EnterAlone()
	if err != nil {
		return nil //nolint:nilerr // it is closed already
	}
	defer leave()
	p.close()
	return nil
}

func (p *pool) close() {
	if !p.gate.Shut() {
		return
	}
	p.stop()
	p.background.Wait()
	if p.projects != nil {
		p.projects.Close()
	}
	p.lock.Close()
}

// Unmount implements storage.Driver.
func (p *pool) Unmount(context.Context) error {
	leave, err := p.gate.EnterAlone()
	if err != nil {
		return err
	}
	defer leave()
	defer p.close()
	ids, err := readNames(p.run)
	if err != nil {
		return err
	}
	var errs []error
	for _, id := range ids {
		if err := p.unmount(id); err != nil {
			errs = append(errs, p.busy("unmount", id, err))
		}
	}
	if len(errs) == 0 {
		errs = append(errs, os.Remove(p.run))
	}
	return errors.Join(errs...)
}

// Destroy implements storage.Driver.
func (p *pool) Destroy(ctx context.Context) error {
	leave, err := p.gate.EnterAlone()
	if err != nil {
		return err
	}
	defer leave()
	names, err := readNames(p.volumes)
	if err != nil {
		return err
	}
	if len(names) > 0 {
		return api.Errorf(api.CodeInUse, "pool %q holds %d volumes", p.config.Name, len(names)).
			WithHint("delete them first")
	}
	p.background.Wait()
	old, err := readNames(p.trash)
	if err == nil {
		err = p.emptyTrash(ctx, old)
	}
	if err != nil {
		return fmt.Errorf("destroy pool %q: %w", p.config.Name, err)
	}
	for _, dir := range []string{p.volumes, p.trash, p.run} {
		if err := os.Remove(dir); err != nil {
			return fmt.Errorf("destroy pool %q: %w", p.config.Name, err)
		}
	}
	defer p.close()
	return os.Remove(p.lock.Name())
}
