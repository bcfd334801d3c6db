package jail

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine/internal/mountfd"
)

// everyones are the device nodes that every monitor has.
var everyones = []struct {
	name         string
	major, minor uint32
}{{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}}

// devices makes /dev. What a monitor was given by name is its own alone,
// whoever may open the host's node.
func (r *root) devices(names []string) error {
	for _, d := range everyones {
		if err := r.mknod(path.Join("dev", d.name), 0o666, 0, unix.Mkdev(d.major, d.minor)); err != nil {
			return err
		}
	}
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Stat(path.Join("/dev", name), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR {
			return api.Errorf(api.CodeUnsupported, "this host has no device /dev/%s", name)
		}
		if err := r.mknod(path.Join("dev", name), 0o600, r.owner, st.Rdev); err != nil {
			return err
		}
	}
	return r.symlink("/proc/self/fd", "dev/fd")
}

// system shows what programs are made of. Where /lib is no link to
// /usr/lib, the dynamic linker and the C library are there.
func (r *root) system() error {
	if err := r.show("/usr", unix.MOUNT_ATTR_RDONLY); err != nil {
		return err
	}
	for _, dir := range []string{"/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"} {
		st, err := os.Lstat(dir)
		switch {
		case errors.Is(err, os.ErrNotExist):
			continue
		case err != nil:
			return err
		case st.Mode()&os.ModeSymlink != 0:
			to, err := os.Readlink(dir)
			if err != nil {
				return err
			}
			if err := r.symlink(to, dir[1:]); err != nil {
				return err
			}
		default:
			if err := r.show(dir, unix.MOUNT_ATTR_RDONLY); err != nil {
				return err
			}
		}
	}
	// The linker's cache: without it a library outside of the usual
	// directories isn't found.
	if _, err := os.Stat("/etc/ld.so.cache"); err == nil {
		return r.show("/etc/ld.so.cache", unix.MOUNT_ATTR_RDONLY)
	}
	return nil
}

// show has a file or directory of the host appear under its path.
func (r *root) show(name string, more uint64) error {
	if !path.IsAbs(name) || path.Clean(name) != name || name == "/" {
		return api.Errorf(api.CodeInternal, "a monitor can't be shown %q", name)
	}
	real, err := filepath.EvalSymlinks(name)
	if err != nil {
		return fmt.Errorf("show the monitor %s: %w", name, err)
	}
	m, err := mountfd.ClonePath(real)
	if err != nil {
		return err
	}
	if err := mountfd.SetAttr(m, attr|more); err != nil {
		m.Close()
		return err
	}
	st, err := m.Stat()
	if err == nil {
		err = r.place(name[1:], st.IsDir())
	}
	if err != nil {
		m.Close()
		return fmt.Errorf("show the monitor %s: %w", name, err)
	}
	r.wall.add(name, m)
	return nil
}

// place makes a mount point, unless it lies in something that is shown whole.
func (r *root) place(name string, dir bool) error {
	if below, ok := strings.CutPrefix(name, "tmp/"); ok {
		return (&root{dir: r.tmp, owner: r.owner}).place(below, dir)
	}
	if r.wall != nil && slices.ContainsFunc(r.wall.message.Mounts[1:], func(shown string) bool { return strings.HasPrefix("/"+name, shown+"/") }) {
		return nil
	}
	for i, c := range name {
		if c == '/' {
			if err := r.mkdir(name[:i]); err != nil {
				return err
			}
		}
	}
	if dir {
		return r.mkdir(name)
	}
	fd, err := unix.Openat(int(r.dir.Fd()), name, unix.O_CREAT|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_WRONLY, 0o444)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

func (r *root) mkdir(name string) error {
	err := unix.Mkdirat(int(r.dir.Fd()), name, 0o755)
	if err == unix.EEXIST {
		return nil
	}
	return r.finish(name, 0o755, 0, err)
}

func (r *root) mknod(name string, mode uint32, owner int, dev uint64) error {
	if dir := path.Dir(name); dir != "dev" {
		if err := r.mkdir(dir); err != nil {
			return err
		}
	}
	err := unix.Mknodat(int(r.dir.Fd()), name, unix.S_IFCHR|mode, int(dev))
	return r.finish(name, mode, owner, err)
}

func (r *root) symlink(to, name string) error {
	if err := unix.Symlinkat(to, int(r.dir.Fd()), name); err != nil {
		return &os.PathError{Op: "make", Path: name, Err: err}
	}
	return nil
}

// finish gives a new file its mode, whatever our umask is, and its owner.
func (r *root) finish(name string, mode uint32, owner int, err error) error {
	if err == nil {
		err = unix.Fchmodat(int(r.dir.Fd()), name, mode, 0)
	}
	if err == nil && owner != 0 {
		err = unix.Fchownat(int(r.dir.Fd()), name, owner, owner, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil {
		return &os.PathError{Op: "make", Path: name, Err: err}
	}
	return nil
}
