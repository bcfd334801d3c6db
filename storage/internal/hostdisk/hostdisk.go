// Package hostdisk is what pools do with the disk that they live on: ask for
// its room, reserve blocks, and give finished files their names.
package hostdisk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// Room is how much of dir's disk pools may still take. A tenth of the disk,
// at most 10 GiB, is left to others: the same disk may hold the daemon's own
// state, which must not run out of space because guests do.
func Room(dir string) (api.Bytes, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("get free space of %s: %w", dir, err)
	}
	left := min(api.Bytes(st.Blocks)*api.Bytes(st.Bsize)/10, 10*api.GiB)
	return max(api.Bytes(st.Bavail)*api.Bytes(st.Bsize)-left, 0), nil
}

// Reserve extends f to the offset to, if it is shorter, and takes blocks for
// all between from and to, so that a full disk is noticed here and not by a
// guest's write. After an error the file is as long as before. A file system
// that can't reserve only extends; CanReserve tells.
func Reserve(f *os.File, from, to int64) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	err = allocate(int(f.Fd()), from, to)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return f.Truncate(max(to, st.Size()))
	}
	if err != nil {
		// The kernel may have come half way.
		return errors.Join(err, f.Truncate(st.Size()))
	}
	return nil
}

// allocate is fallocate, which the runtime's own signals interrupt.
func allocate(fd int, from, to int64) error {
	for {
		if err := unix.Fallocate(fd, 0, from, to-from); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// CanReserve tells whether the file system of dir reserves blocks.
func CanReserve(dir string) (bool, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return false, nil // nor has it unnamed files
	}
	if err != nil {
		return false, &os.PathError{Op: "create a file in", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	err = allocate(fd, 0, 1<<20)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return false, nil
	}
	return err == nil, err
}

// Existing is dir, or its nearest parent that is there.
func Existing(dir string) string {
	for {
		if _, err := os.Stat(dir); err == nil || dir == filepath.Dir(dir) {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

// Rename moves what is complete and synced from old to new, durably.
func Rename(old, new string) error {
	if err := os.Rename(old, new); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(new))
}

// SyncDir makes the entries of dir durable.
func SyncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
