package cell

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// mount is a detached mount and where in the root it belongs.
type mount struct {
	at  string
	fd  int
	dir bool
}

// program are the places that programs and libraries are loaded from,
// whichever of them a host has.
var program = []string{"usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "nix", "gnu", "etc/ld.so.cache"}

// openMounts takes hold of all that the root will consist of. That must be
// before the thread leaves the host's mount namespace.
func (r *run) openMounts() error {
	for _, name := range program {
		st, err := os.Lstat("/" + name)
		if errors.Is(err, fs.ErrNotExist) || err == nil && st.Mode()&fs.ModeSymlink != 0 {
			continue // a link is made again in the root
		}
		if err != nil {
			return err
		}
		if err := r.take(name, unix.AT_FDCWD, "/"+name, st.IsDir(), true); err != nil {
			return err
		}
	}
	if err := r.take("proc", unix.AT_FDCWD, "/proc", true, false); err != nil {
		return err
	}
	for name, f := range r.Files {
		if name != filepath.Base(name) || name == "proc" || slices.Contains(program, name) {
			return fmt.Errorf("file %q has no place in a cell", name)
		}
		if err := r.take(name, int(f.Fd()), "", false, !r.Writable[name]); err != nil {
			return err
		}
	}
	return nil
}

// take clones a mount of a file or directory.
func (r *run) take(at string, dirfd int, path string, dir, readOnly bool) error {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if path == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	if dir {
		flags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(dirfd, path, flags)
	if err != nil {
		return fmt.Errorf("clone mount of /%s: %w", at, err)
	}
	r.mounts = append(r.mounts, mount{at, fd, dir})
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV, Propagation: unix.MS_PRIVATE}
	if readOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	how := uint(unix.AT_EMPTY_PATH)
	if dir {
		how |= unix.AT_RECURSIVE
	}
	if err := unix.MountSetattr(fd, "", how, &attr); err != nil {
		return fmt.Errorf("restrict mount of /%s: %w", at, err)
	}
	return nil
}

// enter gives the thread a mount namespace whose root holds just the mounts.
func (r *run) enter() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("cell", r.Dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=64k,mode=755"); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	if err := unix.Chdir(r.Dir); err != nil {
		return err
	}
	for _, m := range r.mounts {
		if err := m.attach(); err != nil {
			return fmt.Errorf("attach /%s: %w", m.at, err)
		}
	}
	for _, name := range program {
		if target, err := os.Readlink("/" + name); err == nil {
			if err := unix.Symlink(target, name); err != nil {
				return err
			}
		}
	}
	if err := pivot(); err != nil {
		return err
	}
	return unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, "")
}

// attach puts the mount at its place below the working directory.
func (m mount) attach() error {
	if dir := filepath.Dir(m.at); dir != "." {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if m.dir {
		if err := os.Mkdir(m.at, 0o755); err != nil {
			return err
		}
	} else if err := os.WriteFile(m.at, nil, 0o600); err != nil {
		return err
	}
	return unix.MoveMount(m.fd, "", unix.AT_FDCWD, m.at, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// pivot makes the working directory, a mount, the thread's root.
func pivot() error {
	err := unix.PivotRoot(".", ".")
	switch {
	case err == nil:
		if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
			return fmt.Errorf("leave the host's root: %w", err)
		}
	case errors.Is(err, unix.EINVAL):
		// The host's root is its initramfs, which stays at the bottom.
		if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move root: %w", err)
		}
		if err := unix.Chroot("."); err != nil {
			return fmt.Errorf("chroot: %w", err)
		}
	default:
		return fmt.Errorf("pivot_root: %w", err)
	}
	return unix.Chdir("/")
}
