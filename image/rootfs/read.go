package rootfs

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"math"
	"strings"
	"syscall"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/image/erofs"
)

// Layer is one layer's content, in the order of its archive.
type Layer struct {
	entries []entry
	// Dropped names what was left out by policy: devices and attributes.
	Dropped []string
}

type entry struct {
	name   string // clean; of a whiteout: what it hides
	kind   kind
	inode  *erofs.Inode // of a file
	target string       // of a hard link, clean
}

type kind uint8

const (
	kindFile kind = iota // of any type
	kindLink             // hard link
	kindWhiteout
	kindOpaque
	kindDevice // nothing, but it replaces what was there
)

// Empty tells whether the archive named nothing at all.
func (l *Layer) Empty() bool { return len(l.entries) == 0 }

// Options say how a stream is read.
type Options struct {
	Image  *erofs.Writer
	Budget *Budget
	// Plain streams are no layers: names that look like whiteouts are names.
	Plain bool
}

// Read reads a tar stream to its end. What follows the archive's end is read
// too, so that a digest taken of r is that of all of it.
func Read(ctx context.Context, r io.Reader, opts Options) (*Layer, error) {
	l := &Layer{}
	r = &bounded{ctx: ctx, r: r, budget: opts.Budget}
	tr := tar.NewReader(r)
	buf := make([]byte, 256<<10)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return nil, StreamError(err)
		}
		if err := l.add(h, tr, opts, buf); err != nil {
			return nil, err
		}
	}
	if _, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{r}, buf); err != nil {
		return nil, StreamError(err)
	}
	return l, nil
}

func (l *Layer) add(h *tar.Header, r io.Reader, opts Options, buf []byte) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := cleanName(h.Name)
	if err != nil {
		return err
	}
	size := len(name) + len(h.Linkname)
	for k, v := range h.PAXRecords {
		size += len(k) + len(v)
	}
	if err := opts.Budget.addEntry(size); err != nil {
		return err
	}
	if !opts.Plain {
		kind, target, err := whiteout(name)
		if err != nil {
			return err
		}
		switch kind {
		case "whiteout":
			l.entries = append(l.entries, entry{name: target, kind: kindWhiteout})
		case "opaque":
			l.entries = append(l.entries, entry{name: target, kind: kindOpaque})
		}
		if kind != "" {
			return nil
		}
	}
	return l.addFile(name, h, r, opts, buf)
}

func (l *Layer) addFile(name string, h *tar.Header, r io.Reader, opts Options, buf []byte) error {
	e := entry{name: name, inode: &erofs.Inode{Mode: uint32(h.Mode) & 0o7777, Mtime: mtime(h.ModTime)}}
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) > math.MaxUint32 || int64(h.Gid) > math.MaxUint32 {
		return corrupt("%.80q belongs to user %d and group %d, which can't be", name, h.Uid, h.Gid)
	}
	e.inode.UID, e.inode.GID = uint32(h.Uid), uint32(h.Gid)
	var err error
	if e.inode.Xattrs, err = l.xattrs(name, h); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		if err := opts.Budget.addContents(h.Size); err != nil {
			return err
		}
		e.inode.Mode |= syscall.S_IFREG
		if e.inode.Data, err = opts.Image.Store(r, h.Size, buf); err != nil {
			return StreamError(err)
		}
	case tar.TypeDir:
		e.inode.Mode |= syscall.S_IFDIR
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) > maxTarget || strings.Contains(h.Linkname, "\x00") {
			return corrupt("the target of symbolic link %.80q is impossible", name)
		}
		e.inode.Mode = syscall.S_IFLNK | 0o777
		e.inode.Target = h.Linkname
	case tar.TypeLink:
		e.kind, e.inode = kindLink, nil
		if e.target, err = cleanName(h.Linkname); err != nil {
			return err
		}
	case tar.TypeFifo:
		e.inode.Mode |= syscall.S_IFIFO
	case tar.TypeChar, tar.TypeBlock:
		e.kind, e.inode = kindDevice, nil
		l.Dropped = append(l.Dropped, "device "+name)
	default:
		return corrupt("%.80q is of type %q, which no image may have", name, h.Typeflag)
	}
	if name == "" && (e.inode == nil || !e.inode.IsDir()) {
		return corrupt("the root of the archive is no directory")
	}
	l.entries = append(l.entries, e)
	return nil
}

// Attributes in PAX records. Docker, containerd and GNU tar write the first.
const paxXattr = "SCHILY.xattr."

// xattrs keeps the attributes that have a meaning in a guest and none for
// the host: trusted.* and user.overlay.* would speak to overlayfs, labels
// such as security.selinux to the host's own policy.
func (l *Layer) xattrs(name string, h *tar.Header) ([]erofs.Xattr, error) {
	var kept []erofs.Xattr
	for k, v := range h.PAXRecords {
		attr, ok := strings.CutPrefix(k, paxXattr)
		if !ok {
			continue
		}
		switch {
		case attr == "security.capability",
			attr == "system.posix_acl_access", attr == "system.posix_acl_default",
			strings.HasPrefix(attr, "user.") && !strings.HasPrefix(attr, "user.overlay."):
			x := erofs.Xattr{Name: attr, Value: v}
			if err := erofs.ValidXattr(x); err != nil {
				return nil, corrupt("%.80q: %w", name, err)
			}
			kept = append(kept, x)
		default:
			l.Dropped = append(l.Dropped, "attribute "+attr+" of "+name)
		}
	}
	return kept, nil
}

func mtime(t time.Time) time.Time {
	if t.IsZero() {
		return time.Unix(0, 0)
	}
	return t
}

// bounded charges a stream to its budget and ends it with its context.
type bounded struct {
	ctx    context.Context
	r      io.Reader
	budget *Budget
}

func (b *bounded) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := b.r.Read(p)
	if berr := b.budget.addStream(int64(n)); berr != nil {
		return 0, berr
	}
	return n, err
}

// StreamError says of an error without a code of its own that the archive is
// at fault, unless the host is.
func StreamError(err error) error {
	var coded *api.Error
	var errno syscall.Errno
	switch {
	case errors.As(err, &coded), errors.As(err, &errno),
		errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, io.ErrUnexpectedEOF):
		return corrupt("the archive ends too early")
	}
	return corrupt("the archive can't be read: %w", err)
}
