package guest

import (
	"archive/tar"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// entry is one name of a tar stream on its way to the file system.
type entry struct {
	*tar.Header
	x    *extractor
	dir  int    // of the directory it goes to
	name string // below the target
	base string
}

// make calls f with the name to create. If that exists already and is no
// directory, f gets a temporary name beside it, from which commit replaces it
// in one step: readers see the old or the new one, and a failure leaves the
// old.
func (e *entry) make(f func(base string) error) (made string, err error) {
	err = f(e.base)
	if !errors.Is(err, unix.EEXIST) {
		return e.base, err
	}
	if e.isDirectory() {
		return "", api.Errorf(api.CodeExists, "copying to %s in the guest: %s is a directory there and none in the copy", e.x.target, e.name).
			WithHint("remove it first, or choose another target")
	}
	made = ".cleave-" + rand.Text()
	return made, f(made)
}

func (e *entry) commit(made string) error {
	if made == e.base {
		return nil
	}
	err := unix.Renameat(e.dir, made, e.dir, e.base)
	if err == nil && e.Typeflag != tar.TypeLink {
		return nil
	}
	// Renaming one link of a file to another does nothing (rename(2)).
	e.remove(made)
	return err
}

func (e *entry) remove(made string) { _ = unix.Unlinkat(e.dir, made, 0) }

func (e *entry) file(content io.Reader) error {
	var f *os.File
	made, err := e.make(func(base string) error {
		fd, err := unix.Openat(e.dir, base, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err == nil {
			f = os.NewFile(uintptr(fd), e.name)
		}
		return err
	})
	if err != nil {
		return err
	}
	defer f.Close()
	if err = e.fill(f, content); err == nil {
		err = e.describe(int(f.Fd()))
	}
	if err == nil {
		err = setTime(e.dir, made, e.ModTime)
	}
	if err != nil {
		e.remove(made)
		return err
	}
	if err = e.commit(made); errors.Is(err, unix.EBUSY) {
		return e.overwrite(f)
	}
	return err
}

func (e *entry) fill(f *os.File, content io.Reader) error {
	for {
		n, err := content.Read(e.x.buf[:])
		if n > 0 {
			if _, err := f.Write(e.x.buf[:n]); err != nil {
				return unwrapPath(err)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return streamError(err)
		}
	}
}

// overwrite puts from's content into what is there: a file that is mounted,
// like /etc/hosts, can't be replaced. It keeps its owner and mode.
func (e *entry) overwrite(from *os.File) error {
	fd, err := unix.Openat(e.dir, e.base, unix.O_WRONLY|unix.O_TRUNC|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	to := os.NewFile(uintptr(fd), e.name)
	defer to.Close()
	if _, err := from.Seek(0, io.SeekStart); err != nil {
		return unwrapPath(err)
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, e.x.buf[:])
	return unwrapPath(err)
}

// describe sets owner, mode and attributes, in this order: a change of owner
// takes away set-id bits and capabilities.
func (e *entry) describe(fd int) error {
	err := unix.Fchown(fd, e.Uid, e.Gid)
	if errors.Is(err, unix.EINVAL) {
		return api.Errorf(api.CodeInvalid, "copying to %s in the guest: %s belongs to %d:%d, which are not ids of the guest",
			e.x.target, e.name, e.Uid, e.Gid)
	}
	if err == nil {
		err = unix.Fchmod(fd, uint32(e.Mode&0o7777))
	}
	if err == nil {
		err = setXattrs(fd, e.Header, &e.x.left)
	}
	return err
}

// directory makes a directory, or takes the one that is there as it is, but
// for its time.
func (e *entry) directory() error {
	err := unix.Mkdirat(e.dir, e.base, 0o700)
	if errors.Is(err, unix.EEXIST) {
		return e.merge()
	}
	if err != nil {
		return err
	}
	fd, err := unix.Openat(e.dir, e.base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	e.x.times = append(e.x.times, dirTime{e.name, e.ModTime})
	return e.describe(fd)
}

// merge accepts what is there if it is a directory, or a link to one that
// stays below the target.
func (e *entry) merge() error {
	if e.isDirectory() {
		e.x.times = append(e.x.times, dirTime{e.name, e.ModTime})
		return nil
	}
	fd, err := e.x.resolveDir(e.name)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENOENT) {
		return api.Errorf(api.CodeExists, "copying to %s in the guest: %s is no directory there, but one in the copy", e.x.target, e.name).
			WithHint("remove it first, or choose another target")
	}
	if err == nil {
		unix.Close(fd)
	}
	return err
}

func (e *entry) isDirectory() bool {
	var st unix.Stat_t
	err := unix.Fstatat(e.dir, e.base, &st, unix.AT_SYMLINK_NOFOLLOW)
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
}

func (e *entry) symlink() error {
	made, err := e.make(func(base string) error { return unix.Symlinkat(e.Linkname, e.dir, base) })
	if err != nil {
		return err
	}
	return e.finish(made)
}

func (e *entry) fifo() error {
	made, err := e.make(func(base string) error {
		return unix.Mknodat(e.dir, base, unix.S_IFIFO|uint32(e.Mode&0o777), 0)
	})
	if err != nil {
		return err
	}
	if err := e.chmod(made); err != nil {
		e.remove(made)
		return err
	}
	return e.finish(made)
}

// chmod sets the mode of what was made and can't be opened, of which the
// umask took its part. A link that somebody put in its place isn't followed.
func (e *entry) chmod(made string) error {
	fd, err := unix.Openat(e.dir, made, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return err
	}
	return unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), uint32(e.Mode&0o7777))
}

// finish gives what can't be opened its owner and time, and its name.
func (e *entry) finish(made string) error {
	err := unix.Fchownat(e.dir, made, e.Uid, e.Gid, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil {
		err = setTime(e.dir, made, e.ModTime)
	}
	if err != nil {
		e.remove(made)
		return err
	}
	return e.commit(made)
}

// link makes a hard link to an earlier entry, or to what was there before.
func (e *entry) link() error {
	target, err := entryName(e.Linkname)
	if err != nil {
		return err
	}
	from, err := e.x.resolveDir(path.Dir(target))
	if err != nil {
		return err
	}
	defer unix.Close(from)
	made, err := e.make(func(base string) error { return unix.Linkat(from, path.Base(target), e.dir, base, 0) })
	if err != nil {
		return err
	}
	return e.commit(made)
}
