// Package mountfd makes file systems and mounts by descriptor: a mount exists
// detached, in nobody's tree, until it is attached, and dies with its last
// descriptor if it never is. Nothing here takes a path that a guest could
// have made, except Target, which resolves it inside a given root.
package mountfd

import (
	"fmt"
	"os"
	"path"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// FS is a file system being configured (fsopen(2)).
type FS struct {
	kind string
	fd   int
	err  error
}

// New opens a configuration of the file system type.
func New(kind string) *FS {
	fd, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		err = fmt.Errorf("open file system %s: %w", kind, err)
	}
	return &FS{kind: kind, fd: fd, err: err}
}

// String sets an option. After a failure all calls do nothing and Mount
// returns the first error.
func (f *FS) String(key, value string) *FS {
	if f.err == nil {
		if err := unix.FsconfigSetString(f.fd, key, value); err != nil {
			f.fail(key+"="+value, err)
		}
	}
	return f
}

// Flag sets an option without a value.
func (f *FS) Flag(key string) *FS {
	if f.err == nil {
		if err := unix.FsconfigSetFlag(f.fd, key); err != nil {
			f.fail(key, err)
		}
	}
	return f
}

// FD sets an option to an open file.
func (f *FS) FD(key string, fd int) *FS {
	if f.err == nil {
		if err := unix.FsconfigSetFd(f.fd, key, fd); err != nil {
			f.fail(key, err)
		}
	}
	return f
}

// Mount makes the file system and returns it as a detached mount with the
// given MOUNT_ATTR_* flags.
func (f *FS) Mount(attr int) (*os.File, error) {
	defer func() {
		if f.fd >= 0 {
			unix.Close(f.fd)
		}
		f.fd = -1
	}()
	if f.err != nil {
		return nil, f.err
	}
	if err := unix.FsconfigCreate(f.fd); err != nil {
		f.fail("create", err)
		return nil, f.err
	}
	fd, err := unix.Fsmount(f.fd, unix.FSMOUNT_CLOEXEC, attr)
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", f.kind, err)
	}
	return os.NewFile(uintptr(fd), "mount:"+f.kind), nil
}

// fail keeps err together with what the kernel says in the context's log,
// which is the only place where a reason in words is to be had.
func (f *FS) fail(what string, err error) {
	buf := make([]byte, 512)
	if n, e := unix.Read(f.fd, buf); e == nil && n > 2 {
		err = fmt.Errorf("%w (%s)", err, strings.TrimSpace(string(buf[2:n])))
	}
	f.err = fmt.Errorf("%s: set %s: %w", f.kind, what, err)
}

// Clone returns a detached copy of the mount that name, below dir, is on,
// rooted at name. An empty name means dir itself. A last component that is a
// symbolic link is not followed.
func Clone(dir *os.File, name string, recursive bool) (*os.File, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT)
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(int(dir.Fd()), name, flags)
	runtime.KeepAlive(dir)
	if err != nil {
		return nil, fmt.Errorf("clone mount of %s: %w", path.Join(dir.Name(), name), err)
	}
	return os.NewFile(uintptr(fd), "mount:"+name), nil
}

// ClonePath is Clone for a path of the host.
func ClonePath(name string) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, name,
		unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT)
	if err != nil {
		return nil, fmt.Errorf("clone mount of %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), "mount:"+name), nil
}

// SetAttr sets MOUNT_ATTR_* flags on a mount and, recursively, on what is
// below it.
func SetAttr(m *os.File, attr uint64) error {
	return setattr(m, unix.MountAttr{Attr_set: attr})
}

// IDMap maps the ids of a detached mount by the user namespace userns.
func IDMap(m, userns *os.File, attr uint64) error {
	err := setattr(m, unix.MountAttr{Attr_set: attr | unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns.Fd())})
	runtime.KeepAlive(userns)
	return err
}

func setattr(m *os.File, a unix.MountAttr) error {
	err := unix.MountSetattr(int(m.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &a)
	runtime.KeepAlive(m)
	if err != nil {
		return fmt.Errorf("set attributes of %s: %w", m.Name(), err)
	}
	return nil
}

// Attach puts the detached mount m onto target, an open file or directory.
func Attach(m, target *os.File) error {
	err := unix.MoveMount(int(m.Fd()), "", int(target.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	runtime.KeepAlive(m)
	runtime.KeepAlive(target)
	if err != nil {
		return fmt.Errorf("attach %s to %s: %w", m.Name(), target.Name(), err)
	}
	return nil
}

// Open opens name below root with O_PATH; how is a set of RESOLVE_* flags,
// to which RESOLVE_NO_MAGICLINKS is added.
func Open(root *os.File, name string, flags int, how uint64) (*os.File, error) {
	fd, err := openat2(root, name, &unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Resolve: how | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// openat2 tries again when the kernel lost a race against a rename
// (openat2(2), EAGAIN).
func openat2(root *os.File, name string, how *unix.OpenHow) (fd int, err error) {
	for range 32 {
		fd, err = unix.Openat2(int(root.Fd()), name, how)
		if err != unix.EAGAIN && err != unix.EINTR {
			break
		}
	}
	runtime.KeepAlive(root)
	return fd, err
}
