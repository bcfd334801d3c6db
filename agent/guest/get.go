package guest

import (
	"archive/tar"
	"bufio"
	"errors"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/agent/wire"
	"github.com/cleave-project/cleave/api"
)

func stat(q *request) {
	info, err := os.Lstat(q.Path)
	if err != nil {
		q.fail(errnoError(unwrapPath(err), "looking at %s in the guest", q.Path))
		return
	}
	file := &api.FileInfo{Name: info.Name(), Size: info.Size(), Mode: uint32(info.Mode()), Time: info.ModTime()}
	if info.Mode()&os.ModeSymlink != 0 {
		file.Target, _ = os.Readlink(q.Path) // it may be gone by now
	}
	q.reply(wire.Reply{File: file})
}

// unwrapPath takes off the path that os puts before an error: ours name it.
func unwrapPath(err error) error {
	var e *os.PathError
	if errors.As(err, &e) {
		return e.Err
	}
	return err
}

// get sends a tar stream of a path. It goes down by descriptors and never
// follows a link below the path it was given, so that a user of the guest who
// moves things meanwhile can't make it read what it was not asked for.
func get(q *request) {
	a := &archiver{q: q, links: make(map[inode]string)}
	parent, base, name, err := a.locate(q.Path)
	if err != nil {
		q.fail(errnoError(err, "copying %s from the guest", q.Path))
		return
	}
	defer unix.Close(parent)
	q.reply(wire.Reply{Started: true})
	stop := q.releaseWhenClosing()
	defer stop()

	out := bufio.NewWriterSize(q.data[0], len(a.buf))
	a.tar = tar.NewWriter(out)
	if err = a.entry(parent, base, name); err == nil {
		if err = a.tar.Close(); err == nil {
			err = out.Flush()
		}
	}
	if err == nil {
		err = a.left.err("copying %s from the guest", q.Path)
	}
	if err != nil {
		q.fail(err)
		return
	}
	q.data[0].Close()
	q.reply(wire.Reply{Done: true})
}

// archiver writes one tar stream.
type archiver struct {
	q     *request
	tar   *tar.Writer
	links map[inode]string // the name under which a file with more links went
	left  leftOut
	buf   [128 << 10]byte
}

type inode struct{ dev, ino uint64 }

// locate opens the directory that holds a path's last element, and says what
// to call that in the stream. A trailing slash follows a link to a directory;
// "/." and the root stand for a directory's content.
func (a *archiver) locate(p string) (parent int, base, name string, err error) {
	trimmed := strings.TrimRight(p, "/")
	dir, base := path.Split(trimmed)
	name = base
	switch {
	case base == "" || base == "." || base == "..":
		dir, base, name = p, ".", "."
	case trimmed != p:
		dir, base = p, "."
	}
	if parent, err = unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return 0, "", "", err
	}
	var st unix.Stat_t
	if err = unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		unix.Close(parent)
	}
	return parent, base, name, err
}

// entry writes what is called base in the directory dir, under name, and all
// below it.
func (a *archiver) entry(dir int, base, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return a.failed(err, name)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFDIR:
		return a.open(dir, base, name, &st)
	case unix.S_IFLNK:
		return a.symlink(dir, base, name, &st)
	case unix.S_IFIFO:
		return a.write(header(name, tar.TypeFifo, &st))
	case unix.S_IFCHR, unix.S_IFBLK:
		h := header(name, tar.TypeChar, &st)
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
		return a.write(h)
	}
	a.left.add("socket " + name)
	return nil
}

// failed is nil for what went away after it was listed.
func (a *archiver) failed(err error, name string) error {
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return errnoError(err, "copying %s from the guest", name)
}

// open writes a regular file or directory. It may have become something else
// since it was looked at, hence O_NONBLOCK (a FIFO) and another look.
func (a *archiver) open(dir int, base, name string, before *unix.Stat_t) error {
	flags := unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	if before.Mode&unix.S_IFMT == unix.S_IFDIR {
		flags |= unix.O_DIRECTORY
	}
	fd, err := unix.Openat(dir, base, flags, 0)
	if err != nil {
		return a.failed(err, name)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return a.failed(err, name)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return a.directory(f, name, &st, st.Dev != before.Dev || kernelFS(fd))
	case unix.S_IFREG:
		return a.file(f, name, &st)
	}
	return nil // it is another thing now
}

func (a *archiver) directory(f *os.File, name string, st *unix.Stat_t, empty bool) error {
	h := header(name+"/", tar.TypeDir, st)
	a.addXattrs(h, int(f.Fd()))
	if err := a.write(h); err != nil || empty {
		return err
	}
	for {
		names, err := f.Readdirnames(512) // not all: there may be millions
		for _, base := range names {
			if err := a.entry(int(f.Fd()), base, path.Join(name, base)); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return a.failed(unwrapPath(err), name)
		}
	}
}

func (a *archiver) file(f *os.File, name string, st *unix.Stat_t) error {
	h := header(name, tar.TypeReg, st)
	if st.Nlink > 1 {
		id := inode{st.Dev, st.Ino}
		if first, ok := a.links[id]; ok {
			h.Typeflag, h.Linkname = tar.TypeLink, first
			return a.write(h)
		}
		a.links[id] = name
	}
	h.Size = st.Size
	a.addXattrs(h, int(f.Fd()))
	if err := a.write(h); err != nil {
		return err
	}
	// A file that grows is copied as long as it was, one that shrinks is
	// filled up with zeros: the header is gone already.
	for left := st.Size; left > 0; {
		n, err := f.Read(a.buf[:min(left, int64(len(a.buf)))])
		if err == io.EOF {
			a.left.add("the end of " + name + ", which shrank meanwhile")
			clear(a.buf[:])
			n, err = int(min(left, int64(len(a.buf)))), nil
		}
		if err != nil {
			return errnoError(unwrapPath(err), "reading %s in the guest", name)
		}
		if _, err := a.tar.Write(a.buf[:n]); err != nil {
			return err
		}
		left -= int64(n)
	}
	return nil
}

func (a *archiver) symlink(dir int, base, name string, st *unix.Stat_t) error {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, base, buf)
	if err != nil {
		return a.failed(err, name)
	}
	h := header(name, tar.TypeSymlink, st)
	h.Linkname = string(buf[:n])
	return a.write(h)
}

func (a *archiver) write(h *tar.Header) error {
	if err := a.tar.WriteHeader(h); err != nil {
		return api.Errorf(api.CodeInvalid, "copying %s from the guest: %w", h.Name, err)
	}
	return nil
}

func header(name string, kind byte, st *unix.Stat_t) *tar.Header {
	return &tar.Header{
		Format:   tar.FormatPAX,
		Typeflag: kind,
		Name:     name,
		Mode:     int64(st.Mode & 0o7777),
		Uid:      int(st.Uid),
		Gid:      int(st.Gid),
		ModTime:  time.Unix(st.Mtim.Unix()),
	}
}

// kernelFS tells whether fd is in a file system that the kernel makes up:
// what is in there belongs to no copy.
func kernelFS(fd int) bool {
	var st unix.Statfs_t
	if unix.Fstatfs(fd, &st) != nil {
		return false
	}
	switch st.Type {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC,
		unix.DEVPTS_SUPER_MAGIC, unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC, unix.SECURITYFS_MAGIC,
		unix.BPF_FS_MAGIC, unix.SELINUX_MAGIC, unix.PSTOREFS_MAGIC, unix.BINFMTFS_MAGIC:
		return true
	}
	return false
}
