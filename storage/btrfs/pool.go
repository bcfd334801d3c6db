package btrfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/storage"
	"github.com/cleave-project/cleave/storage/internal/hostdisk"
)

// volumesName is the directory of the file system that holds the subvolumes.
// Only root may enter it: guests' files carry ids, and set-uid bits, that
// mean something else on the host.
const volumesName = "volumes"

type pool struct {
	config storage.Config
	lock   *os.File
	file   *loopFile // nil on a btrfs that was there before
	grower *grower   // with file
	path   string    // of the directory of volumes
	dir    *os.File  // the same, open
	commit *committer
	quota  *quota
	gate   *storage.Gate

	deadMu sync.Mutex
	dead   []uint64 // destroyed subvolumes whose qgroups are still to go
}

// Open opens the pool, and makes it if it isn't there.
func Open(ctx context.Context, c storage.Config) (_ storage.Driver, err error) {
	if c.Name == "" || filepath.Base(c.Name) != c.Name {
		return nil, api.Errorf(api.CodeInvalid, "open pool %q: not a name", c.Name)
	}
	if os.Geteuid() != 0 {
		return nil, api.Errorf(api.CodeForbidden, "open pool %q: btrfs subvolumes with limits need root", c.Name).
			WithHint("run the daemon as root")
	}
	if err := os.MkdirAll(c.Source, 0o700); err != nil {
		return nil, fmt.Errorf("make directory of pool %q: %w", c.Name, err)
	}
	p := &pool{config: c, gate: storage.NewGate(c.Name)}
	defer func() {
		if err != nil {
			p.close()
			if p.file != nil {
				_ = p.file.unmount() // the first error is the one to tell
			}
		}
	}()
	if p.lock, err = storage.Lock(c.Source); err != nil {
		return nil, err
	}
	native, err := isNative(c.Source)
	if err != nil {
		return nil, err
	}
	base := c.Source
	if !native {
		if p.file, err = openLoopFile(ctx, c); err != nil {
			return nil, err
		}
		base = p.file.point
	}
	if p.path, err = filepath.Abs(filepath.Join(base, volumesName)); err != nil {
		return nil, err
	}
	if err := os.Mkdir(p.path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("open pool %q: %w", c.Name, err)
	}
	if p.dir, err = os.Open(p.path); err != nil {
		return nil, fmt.Errorf("open pool %q: %w", c.Name, err)
	}
	p.commit = startCommitter(p.dir)
	if p.quota, err = openQuota(p.dir, !native); err != nil {
		return nil, fmt.Errorf("open pool %q: %w", c.Name, err)
	}
	if err := p.sweep(); err != nil {
		return nil, fmt.Errorf("open pool %q: remove what was left half done: %w", c.Name, err)
	}
	if p.file != nil {
		p.grower = startGrower(p.file)
	}
	return p, nil
}

// isNative tells whether the pool lives directly on dir's file system. A
// pool that began in a loop file stays in it.
func isNative(dir string) (bool, error) {
	if _, err := os.Lstat(filepath.Join(dir, fileName)); err == nil {
		return false, nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return false, fmt.Errorf("get type of file system of %s: %w", dir, err)
	}
	return st.Type == unix.BTRFS_SUPER_MAGIC, nil
}

// sweep removes what earlier daemons left half made or half deleted.
func (p *pool) sweep() error {
	names, err := p.names()
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasPrefix(name, ".") {
			if err := p.destroy(name); err != nil {
				return err
			}
		}
	}
	left, err := p.quota.left()
	if err != nil {
		return err
	}
	for _, id := range left {
		p.quota.remove(p.dir, id)
	}
	return nil
}

// names lists the directory of volumes, what is half done included.
func (p *pool) names() ([]string, error) {
	dir, err := os.Open(p.path)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return dir.Readdirnames(-1)
}

// Status implements storage.Driver.
func (p *pool) Status(context.Context) (api.PoolStatus, error) {
	leave, err := p.gate.Enter()
	if err != nil {
		return api.PoolStatus{}, err
	}
	defer leave()
	names, err := p.names()
	if err != nil {
		return api.PoolStatus{}, err
	}
	s := api.PoolStatus{State: "ready", Path: p.path, Quota: p.quota.mode, Reflink: true}
	for _, name := range names {
		if !strings.HasPrefix(name, ".") {
			s.Volumes++
		}
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(p.dir.Fd()), &st); err != nil {
		return api.PoolStatus{}, fmt.Errorf("get free space of pool %q: %w", p.config.Name, err)
	}
	if st.Flags&unix.ST_RDONLY != 0 {
		s.State = "read-only: btrfs has met an error; see the kernel's log"
	}
	s.Total = api.Bytes(st.Blocks) * api.Bytes(st.Bsize)
	s.Used = s.Total - api.Bytes(st.Bavail)*api.Bytes(st.Bsize)
	if p.file == nil {
		return s, nil
	}
	return p.loopStatus(s)
}

func (p *pool) loopStatus(s api.PoolStatus) (api.PoolStatus, error) {
	total, _, err := deviceUse(p.dir)
	if err != nil {
		return s, err
	}
	used, _, err := spaceUse(p.dir)
	if err != nil {
		return s, err
	}
	room, err := hostdisk.Room(p.config.Source)
	if err != nil {
		return s, err
	}
	s.Used, s.Total = api.Bytes(used), api.Bytes(total)+room
	if p.config.Size > 0 {
		s.Total = min(s.Total, max(p.config.Size, api.Bytes(total)))
	}
	if why := p.grower.err.Load(); why != nil && s.State == "ready" {
		s.State = "can't grow: " + *why
	}
	return s, nil
}

// Close implements storage.Driver. A loop file stays mounted.
func (p *pool) Close() error {
	leave, err := p.gate.EnterAlone()
	if err != nil {
		return nil //nolint:nilerr // it is closed already
	}
	defer leave()
	p.close()
	return nil
}

// close undoes Open, as far as that has come, but for the mount.
func (p *pool) close() {
	if !p.gate.Shut() {
		return
	}
	if p.grower != nil {
		p.grower.Close()
	}
	if p.commit != nil {
		p.commit.Close()
		p.dir.Close()
	}
	if p.file != nil {
		p.file.file.Close()
	}
	if p.lock != nil {
		p.lock.Close()
	}
}

// Unmount implements storage.Driver.
func (p *pool) Unmount(context.Context) error {
	leave, err := p.gate.EnterAlone()
	if err != nil {
		return err
	}
	defer leave()
	// The lock goes last: another daemon must not meet a pool that is just
	// being unmounted.
	defer p.close()
	if p.file == nil {
		return nil
	}
	p.grower.Close()
	p.commit.Close()
	p.dir.Close()
	err = p.file.unmount()
	for end := time.Now().Add(busyTime); errors.Is(err, unix.EBUSY) && time.Now().Before(end); err = p.file.unmount() {
		time.Sleep(20 * time.Millisecond) // nothing tells when the last one leaves
	}
	if err != nil {
		return p.busy("unmount", err)
	}
	return os.Remove(p.file.point)
}

// busyTime is for programs of the host that have a look at the pool just then.
const busyTime = 5 * time.Second

func (p *pool) busy(what string, err error) error {
	return api.Errorf(api.CodeInUse, "%s pool %q: unmount %s: %w", what, p.config.Name, p.file.point, err).
		WithHint("a process works in it: end that first")
}

// Destroy implements storage.Driver. Quotas stay enabled on a btrfs that was
// there before.
func (p *pool) Destroy(context.Context) error {
	leave, err := p.gate.EnterAlone()
	if err != nil {
		return err
	}
	defer leave()
	names, err := p.names()
	if err != nil {
		return err
	}
	if len(names) > 0 {
		return api.Errorf(api.CodeInUse, "pool %q holds %d volumes", p.config.Name, len(names)).
			WithHint("delete them first")
	}
	if p.file != nil {
		err = p.destroyFile()
	} else {
		err = p.destroyNative()
	}
	if err != nil {
		return err
	}
	defer p.close()
	return os.Remove(p.lock.Name())
}

func (p *pool) destroyNative() error {
	// Until the kernel has freed the last volume its groups can't go.
	if err := syncFS(p.dir); err != nil {
		return err
	}
	p.reap()
	return os.Remove(p.path)
}

// destroyFile unmounts and removes the loop file, or leaves all as it is.
func (p *pool) destroyFile() error {
	p.grower.Close()
	p.commit.Close()
	p.dir.Close()
	if err := p.file.unmount(); err != nil {
		dir, reopen := os.Open(p.path)
		if reopen != nil {
			return errors.Join(err, reopen)
		}
		p.dir, p.commit, p.grower = dir, startCommitter(dir), startGrower(p.file)
		return p.busy("destroy", err)
	}
	return errors.Join(os.Remove(p.file.file.Name()), os.Remove(p.file.point))
}
