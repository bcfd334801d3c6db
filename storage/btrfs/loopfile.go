package btrfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/internal/loop"
	"github.com/cleave-project/cleave/storage"
	"github.com/cleave-project/cleave/storage/internal/fsmount"
	"github.com/cleave-project/cleave/storage/internal/hostdisk"
)

const (
	fileName = "pool.btrfs"
	// Until mkfs is done with it the file has a name that no other attempt
	// uses: when the daemon dies, its mkfs may go on for a while.
	newPattern = "pool.btrfs.new-*"

	// minSize is what a file system needs to hold its duplicated metadata
	// and leave room for data.
	minSize = 256 * api.MiB
)

// loopFile is a btrfs in a file, mounted.
type loopFile struct {
	file  *os.File
	dev   string // /dev/loopN
	point string
	max   api.Bytes // 0: what the disk can hold
}

// openLoopFile mounts the pool's file, making it first if there is none. A
// file that is there is never formatted, whatever is in it.
func openLoopFile(ctx context.Context, c storage.Config) (*loopFile, error) {
	point, err := fsmount.Point(filepath.Join(c.Run, c.Name))
	if err != nil {
		return nil, fmt.Errorf("open pool %q: %w", c.Name, err)
	}
	mounts, err := fsmount.Under(point)
	if err != nil {
		return nil, err
	}
	mounted := mounts[point]
	if err := removeHalfMade(c); err != nil {
		return nil, err
	}
	path := filepath.Join(c.Source, fileName)
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		if mounted != nil {
			return nil, mountTaken(c.Name, point, mounted.Source)
		}
		if err := format(ctx, c); err != nil {
			return nil, err
		}
	}
	file, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open pool %q: %w", c.Name, err)
	}
	l := &loopFile{file: file, point: point, max: c.Size}
	if mounted != nil {
		err = l.adopt(c.Name, mounted.Source)
	} else {
		err = l.mount(ctx, c.Name)
	}
	if err == nil {
		if err = l.settle(c.Name); err != nil && mounted == nil {
			_ = l.unmount() // what failed is the one thing to tell
		}
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return l, nil
}

func removeHalfMade(c storage.Config) error {
	names, err := filepath.Glob(filepath.Join(c.Source, newPattern))
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := os.Remove(name); err != nil {
			return fmt.Errorf("remove half-made file of pool %q: %w", c.Name, err)
		}
	}
	return nil
}

func mountTaken(pool, point, source string) error {
	return api.Errorf(api.CodeConflict, "open pool %q: %s is mounted from %s, which is not the pool's file", pool, point, source).
		WithHint("if no guest uses it any more, unmount %s", point)
}

// adopt takes over the mount of an earlier daemon.
func (l *loopFile) adopt(pool, source string) error {
	dev, err := loop.Open(source, l.file)
	if err != nil {
		return err
	}
	if dev == nil {
		return mountTaken(pool, l.point, source)
	}
	l.dev = dev.Path()
	return dev.Close()
}

func (l *loopFile) mount(ctx context.Context, pool string) error {
	// Guests of an earlier daemon may hold the file system by mounts of
	// their own although nothing is mounted at our place any more.
	dev, err := loop.Find(l.file)
	if err == nil && dev == nil {
		dev, err = loop.Attach(ctx, l.file)
	}
	if err != nil {
		return api.Errorf(api.CodeNoResources, "open pool %q: %w", pool, err)
	}
	defer dev.Close() // from here on the mount holds it
	l.dev = dev.Path()
	// The file's blocks are reserved on the disk below; a discard would give
	// them back. Since 6.2 btrfs discards unless told not to.
	if err := dev.RefuseDiscards(); err != nil {
		return fmt.Errorf("open pool %q: %w", pool, err)
	}
	err = fsmount.Mount("btrfs", l.dev, l.point, unix.MOUNT_ATTR_NOATIME, fsmount.Option{Key: "nodiscard"})
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENODEV):
		return api.Errorf(api.CodeUnsupported, "open pool %q: this kernel has no btrfs: %w", pool, err).
			WithHint("load the module btrfs, or make a pool of driver dir")
	case errors.Is(err, unix.EPERM):
		return api.Errorf(api.CodeForbidden, "open pool %q: %w", pool, err).WithHint("run the daemon as root")
	case !fsmount.Damaged(err):
		return fmt.Errorf("open pool %q: %w", pool, err)
	}
	return api.Errorf(api.CodeCorrupt, "open pool %q: %s can't be mounted as btrfs: %w", pool, l.file.Name(), err).
		WithHint("look at it with: btrfs check --readonly %s; it is left as it is", l.file.Name())
}

// settle completes a growth that a crash cut short, and takes the blocks of
// holes, which a copy of the file may have.
func (l *loopFile) settle(pool string) error {
	st, err := l.file.Stat()
	if err != nil {
		return err
	}
	if err := hostdisk.Reserve(l.file, 0, st.Size()); err != nil {
		return api.Errorf(api.CodeNoSpace, "open pool %q: %s has holes that its disk has no room for: %w", pool, l.file.Name(), err).
			WithHint("free some space there: the pool's guests would get I/O errors later")
	}
	return l.resize(st.Size())
}

// resize makes device and file system as large as the file.
func (l *loopFile) resize(size int64) error {
	dir, err := os.Open(l.point)
	if err != nil {
		return err
	}
	defer dir.Close()
	total, _, err := deviceUse(dir)
	if err != nil || int64(total) >= size/loop.BlockSize*loop.BlockSize {
		return err
	}
	dev, err := loop.Open(l.dev, l.file)
	if err != nil {
		return err
	}
	if dev == nil {
		return fmt.Errorf("resize %s: %s is on another file", l.file.Name(), l.dev)
	}
	defer dev.Close()
	if err := dev.SetCapacity(); err != nil {
		return err
	}
	return resizeToDevice(dir)
}

// unmount succeeds with guests on it as well: they have mounts of their own
// of what they use, which keep file system and loop device alive. It fails
// when a process uses the pool by its path.
func (l *loopFile) unmount() error { return unix.Unmount(l.point, 0) }

// format makes the pool's file. It gets its name when it is complete.
func format(ctx context.Context, c storage.Config) (err error) {
	mkfs, err := exec.LookPath("mkfs.btrfs")
	if err != nil {
		return api.Errorf(api.CodeUnsupported, "make pool %q: %w", c.Name, err).
			WithHint("install btrfs-progs, or make a pool of driver dir")
	}
	room, err := hostdisk.Room(c.Source)
	if err != nil {
		return err
	}
	if c.Size > 0 && c.Size < minSize {
		return api.Errorf(api.CodeInvalid, "make pool %q of %v: a btrfs pool needs at least %v", c.Name, c.Size, minSize).WithField("spec.size")
	}
	if room < minSize {
		return api.Errorf(api.CodeNoSpace, "make pool %q: the disk of %s has room for %v, at least %v is needed", c.Name, c.Source, room, minSize).
			WithHint("free some space there, or choose another directory")
	}
	size := min(2*headroom(room), room)
	if c.Size > 0 {
		size = min(size, c.Size)
	}
	size = size / api.MiB * api.MiB

	f, err := os.CreateTemp(c.Source, newPattern)
	if err != nil {
		return fmt.Errorf("make pool %q: %w", c.Name, err)
	}
	defer f.Close()
	path := f.Name()
	defer func() {
		if err != nil {
			os.Remove(path)
		}
	}()
	if err := hostdisk.Reserve(f, 0, int64(size)); err != nil {
		return api.Errorf(api.CodeNoSpace, "make pool %q: reserve %v in %s: %w", c.Name, size, c.Source, err)
	}
	// Metadata twice: one bad block must not cost all guests. -K: a discard
	// would undo the reservation.
	cmd := exec.CommandContext(ctx, mkfs, "-q", "-K", "-m", "dup", "-d", "single", "-L", "cleave-"+c.Name, path)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make pool %q: %s: %w: %s", c.Name, mkfs, err, bytes.TrimSpace(out))
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("make pool %q: %w", c.Name, err)
	}
	return hostdisk.Rename(path, filepath.Join(c.Source, fileName))
}
