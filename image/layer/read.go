package layer

import (
	"archive/tar"
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// Options bound what Read takes.
type Options struct {
	// IDs is how many user and group ids there are; 0 for all.
	IDs int
}

// Read makes the empty directory upper the layer in a stream. When it fails,
// the directory holds a part of it.
func Read(ctx context.Context, r io.Reader, upper *os.File, o Options) error {
	root, err := unix.Openat(int(upper.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("writing a layer: %w", err)
	}
	rd := &reader{ctx: ctx, o: o, open: []level{{name: ".", fd: root}}}
	defer rd.close()
	in := bufio.NewReaderSize(&interruptible{ctx, r}, 256<<10)
	rd.tar = tar.NewReader(in)
	for {
		h, err := rd.tar.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("reading a layer: %w", err)
		}
		if err := rd.entry(h); err != nil {
			return err
		}
	}
	if err := errors.Join(rd.leave(0), rd.open[0].settle()); err != nil {
		return err
	}
	// The padding behind the archive's end, which the reader leaves.
	_, err = io.Copy(io.Discard, in)
	return err
}

// level is an open directory on the way from the root to where entries are
// written.
type level struct {
	name string
	fd   int
	time time.Time // it gets when all below it is there; zero for none
}

type reader struct {
	ctx  context.Context
	o    Options
	tar  *tar.Reader
	open []level
}

func (r *reader) close() {
	for _, l := range r.open {
		unix.Close(l.fd)
	}
}

// leave closes directories until n are open below the root, and gives them
// their times.
func (r *reader) leave(n int) error {
	for len(r.open)-1 > n {
		l := r.open[len(r.open)-1]
		err := l.settle()
		unix.Close(l.fd)
		r.open = r.open[:len(r.open)-1]
		if err != nil {
			return err
		}
	}
	return nil
}

// settle gives a directory its time.
func (l *level) settle() error {
	if l.time.IsZero() {
		return nil
	}
	return wrote(l.name, setTime(l.fd, ".", l.time))
}

func setTime(dir int, base string, t time.Time) error {
	ts := unix.NsecToTimespec(t.UnixNano())
	return unix.UtimesNanoAt(dir, base, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

func wrote(name string, err error) error {
	var e *api.Error
	switch {
	case err == nil, errors.As(err, &e):
		return err
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return api.Errorf(api.CodeNoSpace, "writing %s of a layer: %w", name, err).WithHint("give the root a larger size")
	}
	return fmt.Errorf("writing %s of a layer: %w", name, err)
}

// bad is for what no layer of ours holds.
func bad(format string, args ...any) error {
	return api.Errorf(api.CodeInvalid, "a layer holds "+format, args...)
}

// split checks a name and takes it apart; the root has no parts.
func split(name string) ([]string, error) {
	name = strings.TrimSuffix(name, "/")
	if name == "." {
		return nil, nil
	}
	parts := strings.Split(name, "/")
	if len(parts) > deepest {
		return nil, bad("a name of %d levels", len(parts))
	}
	for _, p := range parts {
		if p == "" || p == "." || p == ".." || strings.ContainsRune(p, 0) {
			return nil, bad("the name %.200q", name)
		}
	}
	return parts, nil
}

// enter opens the directory that holds a name. All of them come before what
// they hold.
func (r *reader) enter(parts []string) (int, error) {
	dirs := parts[:len(parts)-1]
	same := 0
	for same < len(dirs) && same+1 < len(r.open) && r.open[same+1].name == dirs[same] {
		same++
	}
	if err := r.leave(same); err != nil {
		return -1, err
	}
	for _, d := range dirs[same:] {
		fd, err := unix.Openat(r.open[len(r.open)-1].fd, d, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1, wrote(strings.Join(parts, "/"), err)
		}
		r.open = append(r.open, level{name: d, fd: fd})
	}
	return r.open[len(r.open)-1].fd, nil
}

func (r *reader) entry(h *tar.Header) error {
	parts, err := split(h.Name)
	if err != nil {
		return err
	}
	if r.o.IDs > 0 && (h.Uid >= r.o.IDs || h.Gid >= r.o.IDs || h.Uid < 0 || h.Gid < 0) {
		return api.Errorf(api.CodeUnsupported, "%s belongs to %d:%d, and there are only %d ids here", h.Name, h.Uid, h.Gid, r.o.IDs).
			WithHint("give it to another user first")
	}
	if len(parts) == 0 {
		return r.root(h)
	}
	dir, err := r.enter(parts)
	if err != nil {
		return err
	}
	return wrote(h.Name, r.put(h, dir, parts[len(parts)-1]))
}

func (r *reader) root(h *tar.Header) error {
	if h.Typeflag != tar.TypeDir {
		return bad("a root that is no directory")
	}
	if err := r.leave(0); err != nil {
		return err
	}
	r.open[0].time = h.ModTime
	return wrote(".", dress(r.open[0].fd, h))
}

// put makes one entry. It must not be there yet.
func (r *reader) put(h *tar.Header, dir int, base string) error {
	switch h.Typeflag {
	case tar.TypeReg:
		return r.file(h, dir, base)
	case tar.TypeDir:
		return r.directory(h, dir, base)
	case tar.TypeLink:
		return r.link(h, dir, base)
	case tar.TypeSymlink:
		if err := unix.Symlinkat(h.Linkname, dir, base); err != nil {
			return err
		}
		return errors.Join(unix.Fchownat(dir, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW), setTime(dir, base, h.ModTime))
	case tar.TypeFifo, tar.TypeChar, tar.TypeBlock:
		return node(h, dir, base)
	}
	return bad("an entry of type %q", h.Typeflag)
}

func (r *reader) directory(h *tar.Header, dir int, base string) error {
	if err := unix.Mkdirat(dir, base, 0o700); err != nil {
		return err
	}
	fd, err := unix.Openat(dir, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	r.open = append(r.open, level{name: base, fd: fd, time: h.ModTime})
	return dress(fd, h)
}

// link makes another name of a file that came before.
func (r *reader) link(h *tar.Header, dir int, base string) error {
	parts, err := split(h.Linkname)
	if err != nil || len(parts) == 0 {
		return cmpOr(err, bad("a link to its root"))
	}
	at := r.open[0].fd
	for i, p := range parts[:len(parts)-1] {
		fd, err := unix.Openat(at, p, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if i > 0 {
			unix.Close(at)
		}
		if err != nil {
			return err
		}
		at = fd
	}
	if len(parts) > 1 {
		defer unix.Close(at)
	}
	return unix.Linkat(at, parts[len(parts)-1], dir, base, 0)
}

func cmpOr(err, other error) error {
	if err != nil {
		return err
	}
	return other
}

// node makes what is neither a file nor a directory. Nobody here opens it.
func node(h *tar.Header, dir int, base string) error {
	mode := uint32(h.Mode) & 0o7777
	dev := 0
	switch {
	case h.Typeflag == tar.TypeFifo && h.PAXRecords[recordSocket] != "":
		mode |= unix.S_IFSOCK
	case h.Typeflag == tar.TypeFifo:
		mode |= unix.S_IFIFO
	default:
		mode |= unix.S_IFCHR
		if h.Typeflag == tar.TypeBlock {
			mode = mode&^unix.S_IFMT | unix.S_IFBLK
		}
		dev = int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))
	}
	if err := unix.Mknodat(dir, base, mode, dev); err != nil {
		return err
	}
	if err := unix.Fchownat(dir, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	// The mode went through the umask and lost bits to the change of owner. It
	// is none of a link's: one was just made that wasn't there.
	if err := unix.Fchmodat(dir, base, uint32(h.Mode)&0o7777, 0); err != nil {
		return err
	}
	return setTime(dir, base, h.ModTime)
}

func (r *reader) file(h *tar.Header, dir int, base string) error {
	fd, err := unix.Openat(dir, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), base)
	defer f.Close()
	if size := h.PAXRecords[recordSparse]; size != "" {
		err = r.sparse(f, size)
	} else {
		_, err = io.Copy(f, r.tar)
	}
	if err != nil {
		return err
	}
	if err := dress(fd, h); err != nil {
		return err
	}
	return setTime(dir, base, h.ModTime)
}

// sparse writes a file's extents.
func (r *reader) sparse(f *os.File, text string) error {
	size, err := strconv.ParseInt(text, 10, 64)
	if err != nil || size < 0 {
		return bad("a file of length %.40q", text)
	}
	for end := int64(0); ; {
		var head [extentHeader]byte
		if _, err := io.ReadFull(r.tar, head[:]); err == io.EOF {
			return f.Truncate(size)
		} else if err != nil {
			return err
		}
		off, n := int64(binary.BigEndian.Uint64(head[:8])), int64(binary.BigEndian.Uint64(head[8:]))
		if off < end || n < 0 || n > size-off {
			return bad("an extent at %d of %d in a file of %d", off, n, size)
		}
		end = off + n
		if _, err := f.Seek(off, io.SeekStart); err != nil {
			return err
		}
		if _, err := io.CopyN(f, r.tar, n); err != nil {
			return err
		}
	}
}

// dress gives a file or directory its owner, attributes and mode, in an order
// in which none takes from another: a change of owner drops set-user-ID bits
// and capabilities.
func dress(fd int, h *tar.Header) error {
	if err := unix.Fchown(fd, h.Uid, h.Gid); err != nil {
		return err
	}
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, paxXattr)
		if !ok {
			coded, ours := strings.CutPrefix(key, recordXattr)
			if !ours {
				continue
			}
			raw, err := hex.DecodeString(coded)
			if err != nil {
				return bad("the attribute %.80q", key)
			}
			name = string(raw)
		}
		if !carried(name) {
			return bad("the attribute %.80q", name)
		}
		if err := unix.Fsetxattr(fd, name, []byte(value), 0); err != nil {
			return fmt.Errorf("attribute %.80q: %w", name, err)
		}
	}
	return unix.Fchmod(fd, uint32(h.Mode)&0o7777)
}
