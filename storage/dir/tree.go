package dir

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/storage/internal/hostdisk"
)

// Trees that guests have filled are walked by descriptors and single names,
// never by paths, and symbolic links are never followed.

// discard takes what volumes has under name out of sight and removes it; it
// is no error if there is no such thing. What can't be removed stays in the
// trash, for the next Open to try again.
func (p *pool) discard(ctx context.Context, name string) error {
	bin, err := os.MkdirTemp(p.trash, "")
	if err != nil {
		return err
	}
	err = os.Rename(filepath.Join(p.volumes, name), filepath.Join(bin, "0"))
	if errors.Is(err, os.ErrNotExist) {
		return os.Remove(bin)
	}
	if err != nil {
		return errors.Join(err, os.Remove(bin))
	}
	if err := hostdisk.SyncDir(p.volumes); err != nil {
		return err
	}
	return emptyBin(ctx, bin)
}

// emptyTrash removes bins that deletes which were cut short have left. No
// other call may be at work on them.
func (p *pool) emptyTrash(ctx context.Context, bins []string) error {
	var errs []error
	for _, name := range bins {
		errs = append(errs, emptyBin(ctx, filepath.Join(p.trash, name)))
	}
	return errors.Join(errs...)
}

// emptyBin removes a directory of the trash and all in it. A directory in a
// directory is first moved up into the bin itself: a guest may have nested
// them deeper than there are descriptors or stack for, and this way depth
// costs nothing.
func emptyBin(ctx context.Context, bin string) error {
	for {
		names, err := readNames(bin)
		if err != nil {
			return err
		}
		if len(names) == 0 {
			return os.Remove(bin)
		}
		for _, name := range names {
			if err := flatten(ctx, bin, name); err != nil {
				return fmt.Errorf("remove deleted volume: %w", err)
			}
		}
	}
}

// flatten removes what bin has under name, or if it is a directory all in
// it that isn't a directory, and moves the directories in it to the bin.
func flatten(ctx context.Context, bin, name string) error {
	path := filepath.Join(bin, name)
	if err := os.Remove(path); err == nil || !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	dir := os.NewFile(uintptr(fd), path)
	defer dir.Close()
	for {
		// Removing may make the kernel skip entries; the caller comes again.
		entries, err := dir.Readdirnames(1024)
		if len(entries) == 0 {
			return nil
		}
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		for _, entry := range entries {
			if err := unlinkOrHoist(dir, entry, bin); err != nil {
				return err
			}
		}
	}
}

// hoisted makes names in bins unique, with a prefix that no earlier daemon
// has used in the same bin.
var (
	hoisted     atomic.Uint64
	hoistPrefix = strconv.FormatInt(time.Now().UnixNano(), 36) + "-"
)

func unlinkOrHoist(dir *os.File, name, bin string) error {
	fd := int(dir.Fd())
	err := unix.Unlinkat(fd, name, 0)
	if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EPERM) {
		err = unix.Unlinkat(fd, name, unix.AT_REMOVEDIR)
	}
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
		err = unix.Renameat(fd, name, unix.AT_FDCWD, filepath.Join(bin, hoistPrefix+strconv.FormatUint(hoisted.Add(1), 10)))
	}
	if err != nil {
		return &os.PathError{Op: "remove " + strconv.Quote(name) + " in", Path: dir.Name(), Err: err}
	}
	return nil
}

// deepest is how far diskUse goes down; each level holds a descriptor.
const deepest = 200

type inode struct{ dev, ino uint64 }

// diskUse adds up the blocks of dir and all below it, a file with several
// names once.
func diskUse(ctx context.Context, dir *os.File, depth int, seen map[inode]bool) (api.Bytes, error) {
	if depth > deepest {
		return 0, api.Errorf(api.CodeUnsupported, "measure volume: directories are nested deeper than %d", deepest)
	}
	var total api.Bytes
	for {
		names, err := dir.Readdirnames(1024)
		if len(names) == 0 {
			return total, nil
		}
		if err != nil {
			return 0, err
		}
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		for _, name := range names {
			n, err := entryUse(ctx, dir, name, depth, seen)
			if err != nil && !errors.Is(err, os.ErrNotExist) { // removed meanwhile
				return 0, err
			}
			total += n
		}
	}
}

func entryUse(ctx context.Context, dir *os.File, name string, depth int, seen map[inode]bool) (api.Bytes, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return 0, err
	}
	size := api.Bytes(st.Blocks) * 512
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if st.Nlink > 1 {
			if seen[inode{st.Dev, st.Ino}] {
				return 0, nil
			}
			seen[inode{st.Dev, st.Ino}] = true
		}
		return size, nil
	}
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	sub := os.NewFile(uintptr(fd), name)
	defer sub.Close()
	below, err := diskUse(ctx, sub, depth+1, seen)
	return size + below, err
}
