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
	"github.com/cleave-project/cleave/internal/sparse"
)

// Write sends the layer in the directory upper.
func Write(ctx context.Context, w io.Writer, upper *os.File) error {
	buffered := bufio.NewWriterSize(w, 256<<10)
	wr := &writer{ctx: ctx, tar: tar.NewWriter(buffered), links: map[inode]string{}}
	root, err := unix.Openat(int(upper.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("reading a layer: %w", err)
	}
	f := os.NewFile(uintptr(root), ".")
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(root, &st); err != nil {
		return fmt.Errorf("reading a layer: %w", err)
	}
	if err := wr.directory(f, ".", &st, 0); err != nil {
		return err
	}
	return errors.Join(wr.tar.Close(), buffered.Flush())
}

type inode struct{ dev, ino uint64 }

type writer struct {
	ctx   context.Context
	tar   *tar.Writer
	links map[inode]string // the first name of a file with several
}

func failed(name string, err error) error {
	return fmt.Errorf("reading %s of a layer: %w", name, err)
}

// directory writes a directory and all below it.
func (w *writer) directory(f *os.File, name string, st *unix.Stat_t, depth int) error {
	if depth > deepest {
		return api.Errorf(api.CodeUnsupported, "a directory is more than %d levels deep", deepest)
	}
	h := header(name+"/", tar.TypeDir, st)
	if err := addXattrs(h, f); err != nil {
		return failed(name, err)
	}
	if err := w.tar.WriteHeader(h); err != nil {
		return failed(name, err)
	}
	for {
		names, err := f.Readdirnames(512) // not all: there may be millions
		for _, base := range names {
			if err := w.ctx.Err(); err != nil {
				return err
			}
			if err := w.entry(f, base, name+"/"+base, depth+1); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return failed(name, err)
		}
	}
}

func (w *writer) entry(dir *os.File, base, name string, depth int) error {
	name = strings.TrimPrefix(name, "./")
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return failed(name, err)
	}
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFDIR && st.Nlink > 1 && !isWhiteout(&st) { // all whiteouts may be one inode
		id := inode{st.Dev, st.Ino}
		if first, ok := w.links[id]; ok {
			h := header(name, tar.TypeLink, &st)
			h.Linkname = first
			return w.put(h)
		}
		w.links[id] = name
	}
	switch kind {
	case unix.S_IFREG, unix.S_IFDIR:
		return w.open(dir, base, name, kind, depth)
	case unix.S_IFLNK:
		return w.symlink(dir, base, name, &st)
	}
	h := header(name, tar.TypeFifo, &st)
	switch kind {
	case unix.S_IFSOCK:
		h.PAXRecords = map[string]string{recordSocket: "1"}
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if kind == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	}
	return w.put(h)
}

func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

func (w *writer) put(h *tar.Header) error {
	if err := w.tar.WriteHeader(h); err != nil {
		return failed(h.Name, err)
	}
	return nil
}

// open writes a file or a directory. Nobody else writes to the tree, but what
// it is has to hold if somebody does.
func (w *writer) open(dir *os.File, base, name string, kind uint32, depth int) error {
	flags := unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC
	if kind == unix.S_IFDIR {
		flags |= unix.O_DIRECTORY
	}
	fd, err := unix.Openat(int(dir.Fd()), base, flags, 0)
	if err != nil {
		return failed(name, err)
	}
	f := os.NewFile(uintptr(fd), base)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return failed(name, err)
	}
	switch {
	case st.Mode&unix.S_IFMT != kind:
		return failed(name, errors.New("it changed meanwhile"))
	case kind == unix.S_IFDIR:
		return w.directory(f, name, &st, depth)
	}
	return w.file(f, name, &st)
}

func (w *writer) file(f *os.File, name string, st *unix.Stat_t) error {
	h := header(name, tar.TypeReg, st)
	if err := addXattrs(h, f); err != nil {
		return failed(name, err)
	}
	h.Size = st.Size
	var extents []sparse.Extent
	if st.Blocks*512 < st.Size {
		for e, err := range sparse.Extents(f) {
			if err != nil {
				return failed(name, err)
			}
			extents = append(extents, e)
		}
		setRecord(h, recordSparse, strconv.FormatInt(st.Size, 10))
		h.Size = 0
		for _, e := range extents {
			h.Size += extentHeader + e.Length
		}
	}
	if err := w.put(h); err != nil {
		return err
	}
	if h.PAXRecords[recordSparse] == "" {
		return w.content(f, name, sparse.Extent{Length: st.Size})
	}
	for _, e := range extents {
		var head [extentHeader]byte
		binary.BigEndian.PutUint64(head[:8], uint64(e.Offset))
		binary.BigEndian.PutUint64(head[8:], uint64(e.Length))
		if _, err := w.tar.Write(head[:]); err != nil {
			return failed(name, err)
		}
		if err := w.content(f, name, e); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) content(f *os.File, name string, e sparse.Extent) error {
	n, err := io.Copy(w.tar, &interruptible{w.ctx, io.NewSectionReader(f, e.Offset, e.Length)})
	if err == nil && n < e.Length {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return failed(name, err)
	}
	return nil
}

// interruptible is a reader that fails when its context ends.
type interruptible struct {
	ctx context.Context
	r   io.Reader
}

func (i *interruptible) Read(p []byte) (int, error) {
	if err := i.ctx.Err(); err != nil {
		return 0, err
	}
	return i.r.Read(p)
}

func (w *writer) symlink(dir *os.File, base, name string, st *unix.Stat_t) error {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(dir.Fd()), base, buf)
	if err != nil {
		return failed(name, err)
	}
	h := header(name, tar.TypeSymlink, st)
	h.Linkname = string(buf[:n])
	return w.put(h)
}

func header(name string, kind byte, st *unix.Stat_t) *tar.Header {
	return &tar.Header{
		Format: tar.FormatPAX, Typeflag: kind, Name: name, Mode: int64(st.Mode & 0o7777),
		Uid: int(st.Uid), Gid: int(st.Gid), ModTime: time.Unix(st.Mtim.Unix()),
	}
}

func setRecord(h *tar.Header, key, value string) {
	if h.PAXRecords == nil {
		h.PAXRecords = map[string]string{}
	}
	h.PAXRecords[key] = value
}

// addXattrs puts the attributes of a file into its header.
func addXattrs(h *tar.Header, f *os.File) error {
	fd := int(f.Fd())
	list := make([]byte, 64<<10) // XATTR_LIST_MAX
	n, err := unix.Flistxattr(fd, list)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return err
	}
	value := make([]byte, 64<<10) // XATTR_SIZE_MAX
	for name := range strings.SplitSeq(string(list[:n]), "\x00") {
		if name == "" || !carried(name) {
			continue
		}
		n, err := unix.Fgetxattr(fd, name, value)
		if err != nil {
			return fmt.Errorf("attribute %s: %w", name, err)
		}
		v := value[:n]
		if name == "security.capability" {
			v = plainCapability(v)
		}
		key := paxXattr + name
		if strings.ContainsRune(name, '=') {
			key = recordXattr + hex.EncodeToString([]byte(name))
		}
		setRecord(h, key, string(v))
	}
	return nil
}

// carried tells whether an attribute belongs to the layer. What else the
// overlay notes is about inodes as they are in one place, and labels follow
// the policy of a place.
func carried(name string) bool {
	if rest, ok := strings.CutPrefix(name, "trusted.overlay."); ok {
		return rest == "opaque" || rest == "redirect"
	}
	return name != "security.selinux" && name != "security.ima" && name != "security.evm"
}

// plainCapability takes the user namespace's root out of a file's
// capabilities where that is the layer's own root: seen from inside, the
// attribute is one without (capabilities(7), "File capability extended
// attribute versioning").
func plainCapability(v []byte) []byte {
	const (
		versionMask = 0xff000000
		version2    = 0x02000000
		version3    = 0x03000000
		size3       = 24
	)
	if len(v) != size3 {
		return v
	}
	magic := binary.LittleEndian.Uint32(v)
	if magic&versionMask != version3 || binary.LittleEndian.Uint32(v[20:]) != 0 {
		return v
	}
	out := append([]byte(nil), v[:20]...)
	binary.LittleEndian.PutUint32(out, magic&^uint32(versionMask)|version2)
	return out
}
