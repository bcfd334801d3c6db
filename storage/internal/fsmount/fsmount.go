// Package fsmount mounts file systems by descriptor (fsopen, Linux 5.2) and
// tells what is mounted where.
package fsmount

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Option is a mount option of the file system; without Value it is a flag.
type Option struct{ Key, Value string }

// Mount mounts the file system on the block device source at target, an
// existing directory. The mount is private: what is mounted below it stays
// in this mount namespace.
func Mount(fstype, source, target string, attrs int, options ...Option) error {
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("mount %s: open file system %s: %w", source, fstype, err)
	}
	defer unix.Close(fs)
	options = append([]Option{{"source", source}}, options...)
	for _, o := range options {
		if o.Value == "" {
			err = unix.FsconfigSetFlag(fs, o.Key)
		} else {
			err = unix.FsconfigSetString(fs, o.Key, o.Value)
		}
		if err != nil {
			return fmt.Errorf("mount %s: option %s: %w%s", source, o.Key, err, kernelSays(fs))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return fmt.Errorf("mount %s (%s): %w%s", source, fstype, err, kernelSays(fs))
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return fmt.Errorf("mount %s (%s): %w%s", source, fstype, err, kernelSays(fs))
	}
	defer unix.Close(mnt)
	if err := unix.MoveMount(mnt, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s at %s: %w", source, target, err)
	}
	// Below a shared mount the new one has just become shared as well.
	private := unix.MountAttr{Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(mnt, "", unix.AT_EMPTY_PATH, &private); err != nil {
		_ = unix.Unmount(target, unix.MNT_DETACH)
		return fmt.Errorf("mount %s at %s: make it private: %w", source, target, err)
	}
	return nil
}

// Damaged tells whether an error of Mount is about what is on the device,
// and not about the host or the moment.
func Damaged(err error) bool {
	for _, other := range []error{unix.ENOMEM, unix.EINTR, unix.EBUSY, unix.EPERM, unix.EACCES, unix.ENODEV, unix.ENOTBLK, unix.ENOENT} {
		if errors.Is(err, other) {
			return false
		}
	}
	return true
}

// kernelSays reads what the kernel left in the context's log, like
// ": e btrfs: open_ctree failed".
func kernelSays(fs int) string {
	var all []string
	buf := make([]byte, 1024)
	for {
		n, err := unix.Read(fs, buf)
		if err != nil || n <= 0 {
			break
		}
		all = append(all, string(bytes.TrimSpace(buf[:n])))
	}
	if len(all) == 0 {
		return ""
	}
	return ": " + strings.Join(all, ", ")
}

// Point makes the directory dir, which only its owner may enter, and returns
// its path as the kernel shows it in a list of mounts.
func Point(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(dir)
}

// Under lists the mounts at dir and below it by mount point; of several
// mounts at one place the one on top counts.
func Under(dir string) (map[string]*mountinfo.Info, error) {
	f, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	infos, err := mountinfo.GetMountsFromReader(f, func(i *mountinfo.Info) (skip, stop bool) {
		return i.Mountpoint != dir && !strings.HasPrefix(i.Mountpoint, dir+"/"), false
	})
	if err != nil {
		return nil, fmt.Errorf("list mounts below %s: %w", dir, err)
	}
	at := make(map[string]*mountinfo.Info, len(infos))
	for _, i := range infos {
		at[i.Mountpoint] = i
	}
	return at, nil
}
