package guest

import (
	"archive/tar"
	"bufio"
	"errors"
	"io"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/agent/wire"
	"github.com/cleave-project/cleave/api"
)

// put extracts a tar stream below a directory.
func put(q *request) {
	stop := q.releaseWhenClosing()
	defer stop()
	x, err := newExtractor(q.Path)
	if err != nil {
		q.fail(err)
		return
	}
	defer x.close()
	in := bufio.NewReaderSize(q.data[0], len(x.buf))
	if err = x.extract(tar.NewReader(in)); err == nil {
		// The padding after the archive's end, which the reader leaves.
		_, err = io.Copy(io.Discard, in)
	}
	if err == nil {
		err = x.left.err("copying to %s in the guest", q.Path)
	}
	if err != nil {
		q.fail(err)
		return
	}
	q.reply(wire.Reply{Done: true})
}

// extractor writes below one directory of the guest. Every name is resolved
// by the kernel below that directory's descriptor, so that no link, whoever
// made it and whenever, leads out.
type extractor struct {
	root    int
	resolve uint64
	target  string

	dir   string // the last directory used
	dirFD int    // its descriptor, or -1

	times []dirTime // directories get theirs last: every entry changes it
	left  leftOut
	buf   [128 << 10]byte
}

type dirTime struct {
	name string
	time time.Time
}

func newExtractor(target string) (*extractor, error) {
	fd, err := unix.Open(target, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, errnoError(err, "copying to %s in the guest", target)
	}
	x := &extractor{root: fd, dirFD: -1, target: target, resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}
	if path.Clean(target) == "/" {
		// There is no outside: absolute links, like /var/run, are fine.
		x.resolve = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS
	}
	return x, nil
}

func (x *extractor) close() {
	unix.Close(x.root)
	if x.dirFD >= 0 {
		unix.Close(x.dirFD)
	}
}

func (x *extractor) extract(tr *tar.Reader) error {
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return x.setTimes()
		}
		if err != nil {
			return streamError(err)
		}
		if err := x.entry(h, tr); err != nil {
			return err
		}
	}
}

// streamError is for what is wrong with the stream rather than with the
// guest.
func streamError(err error) error {
	return api.Errorf(api.CodeInvalid, "reading the tar stream: %w", err)
}

func (x *extractor) entry(h *tar.Header, content io.Reader) error {
	name, err := entryName(h.Name)
	if err != nil || name == "." {
		return err // the target itself keeps what it has
	}
	dir, err := x.open(path.Dir(name))
	if err != nil {
		return x.failed(err, name)
	}
	e := &entry{Header: h, x: x, dir: dir, name: name, base: path.Base(name)}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		err = e.file(content)
	case tar.TypeDir:
		err = e.directory()
	case tar.TypeSymlink:
		err = e.symlink()
	case tar.TypeLink:
		err = e.link()
	case tar.TypeFifo:
		err = e.fifo()
	case tar.TypeChar, tar.TypeBlock:
		x.left.add("device " + name)
	case tar.TypeXGlobalHeader:
	default:
		x.left.add(name + ", of an unknown type")
	}
	return x.failed(err, name)
}

func (x *extractor) failed(err error, name string) error {
	var e *api.Error
	if err == nil || errors.As(err, &e) {
		return err
	}
	return errnoError(err, "copying to %s in the guest: %s", x.target, name)
}

// entryName cleans a name of the stream. Absolute names are taken below the
// target, as every tar does.
func entryName(name string) (string, error) {
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", api.Errorf(api.CodeInvalid, "reading the tar stream: the name %q contains ..", name)
		}
	}
	name = path.Clean("/" + name)[1:]
	if name == "" {
		return ".", nil
	}
	return name, nil
}

// open returns the descriptor of a directory below the target, which is made
// if it isn't there. It is valid until the next call.
func (x *extractor) open(dir string) (int, error) {
	if x.dirFD >= 0 && x.dir == dir {
		return x.dirFD, nil
	}
	fd, err := x.resolveDir(dir)
	if errors.Is(err, unix.ENOENT) && dir != "." {
		var parent int
		if parent, err = x.open(path.Dir(dir)); err != nil {
			return -1, err
		}
		if err = unix.Mkdirat(parent, path.Base(dir), 0o755); err == nil || errors.Is(err, unix.EEXIST) {
			fd, err = x.resolveDir(dir)
		}
	}
	if err != nil {
		return -1, err
	}
	if x.dirFD >= 0 {
		unix.Close(x.dirFD)
	}
	x.dir, x.dirFD = dir, fd
	return fd, nil
}

// resolveDir opens a directory that exists.
func (x *extractor) resolveDir(dir string) (fd int, err error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: x.resolve}
	// The kernel gives up when something was renamed meanwhile (openat2(2),
	// EAGAIN).
	for range 16 {
		if fd, err = unix.Openat2(x.root, dir, &how); !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	return fd, err
}

// setTimes sets the directories' times.
func (x *extractor) setTimes() error {
	for _, d := range x.times {
		dir, err := x.open(path.Dir(d.name))
		if err == nil {
			err = setTime(dir, path.Base(d.name), d.time)
		}
		if err != nil {
			return x.failed(err, d.name)
		}
	}
	return nil
}

func setTime(dir int, base string, t time.Time) error {
	ts := unix.NsecToTimespec(t.UnixNano())
	return unix.UtimesNanoAt(dir, base, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}
