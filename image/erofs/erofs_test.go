package erofs_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	goerofs "github.com/erofs/go-erofs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/image/erofs"
	"github.com/cleave-project/cleave/image/imagetest"
)

var when = time.Unix(1_700_000_000, 987_654_321)

// image collects a tree and writes it.
type image struct {
	t    *testing.T
	file *os.File
	w    *erofs.Writer
	root *erofs.Inode
	buf  []byte
}

func newImage(t *testing.T) *image {
	f, err := os.Create(filepath.Join(t.TempDir(), "image.erofs"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return &image{t: t, file: f, w: erofs.NewWriter(f), root: dir(), buf: make([]byte, 64<<10)}
}

func dir(entries ...erofs.Entry) *erofs.Inode {
	return &erofs.Inode{Mode: syscall.S_IFDIR | 0o755, Mtime: when, Entries: entries}
}

func (m *image) regular(body []byte) *erofs.Inode {
	m.t.Helper()
	d, err := m.w.Store(bytes.NewReader(body), int64(len(body)), m.buf)
	if err != nil {
		m.t.Fatal(err)
	}
	return &erofs.Inode{Mode: syscall.S_IFREG | 0o644, Mtime: when, Data: d}
}

func (m *image) add(name string, i *erofs.Inode) {
	m.root.Entries = append(m.root.Entries, erofs.Entry{Name: name, Inode: i})
}

// finish writes the image, has fsck.erofs look at it where there is one, and
// mounts it.
func (m *image) finish() string {
	m.t.Helper()
	size, err := m.w.Finish(m.root, [16]byte{1, 2, 3})
	if err != nil {
		m.t.Fatal(err)
	}
	if st, err := m.file.Stat(); err != nil || st.Size() != size {
		m.t.Fatalf("size %d, file %v %v", size, st.Size(), err)
	}
	if fsck, err := exec.LookPath("fsck.erofs"); err == nil {
		if out, err := exec.Command(fsck, m.file.Name()).CombinedOutput(); err != nil {
			m.t.Errorf("fsck.erofs: %v: %s", err, out)
		}
	}
	return imagetest.Mount(m.t, m.file.Name())
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

func TestFilesOfAllSizesReadBack(t *testing.T) {
	m := newImage(t)
	var sizes []int
	for _, around := range []int{2, 2048, 4096, 4096 + 2048, 8192, 64 << 10, 1 << 20} {
		for n := max(around-2, 0); n <= around+2; n++ {
			sizes = append(sizes, n)
			m.add(fmt.Sprint("f", n), m.regular(pattern(n)))
		}
	}
	at := m.finish()
	for _, n := range sizes {
		got, err := os.ReadFile(filepath.Join(at, fmt.Sprint("f", n)))
		if err != nil || !bytes.Equal(got, pattern(n)) {
			t.Errorf("file of %d bytes: %d bytes, %v", n, len(got), err)
		}
	}
}

func TestMetadataReadsBack(t *testing.T) {
	m := newImage(t)
	file := m.regular([]byte("hello"))
	file.Mode = syscall.S_IFREG | 0o4755
	file.UID, file.GID = 1000, 70000
	file.Xattrs = []erofs.Xattr{
		{"user.note", "value"},
		{"security.capability", "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"},
		{"user.empty", ""},
		{"user.long", strings.Repeat("x", 5000)},
		{"system.posix_acl_access", acl},
	}
	old := m.regular(nil)
	old.Mtime = time.Unix(-86400, 5)
	m.add("file", file)
	m.add("again", file)
	m.add("old", old)
	m.add("fifo", &erofs.Inode{Mode: syscall.S_IFIFO | 0o600, Mtime: when})
	m.add("device", &erofs.Inode{Mode: syscall.S_IFCHR | 0o666, Mtime: when, Rdev: uint32(unix.Mkdev(1, 3))})
	m.add("sub", dir(erofs.Entry{Name: "third", Inode: file}, erofs.Entry{Name: "deep", Inode: dir()}))
	for _, n := range []int{1, 2000, 2048, 2049, 4095} {
		m.add(fmt.Sprint("link", n), &erofs.Inode{Mode: syscall.S_IFLNK | 0o777, Mtime: when, Target: strings.Repeat("t", n)})
	}
	at := m.finish()

	var st unix.Stat_t
	for name, want := range map[string]struct {
		mode, uid, gid uint32
		nlink          uint64
		mtime          time.Time
	}{
		"file":       {syscall.S_IFREG | 0o4755, 1000, 70000, 3, when},
		"sub/third":  {syscall.S_IFREG | 0o4755, 1000, 70000, 3, when},
		"old":        {syscall.S_IFREG | 0o644, 0, 0, 1, time.Unix(-86400, 5)},
		"fifo":       {syscall.S_IFIFO | 0o600, 0, 0, 1, when},
		"device":     {syscall.S_IFCHR | 0o666, 0, 0, 1, when},
		"sub":        {syscall.S_IFDIR | 0o755, 0, 0, 3, when},
		".":          {syscall.S_IFDIR | 0o755, 0, 0, 3, when},
		"link1":      {syscall.S_IFLNK | 0o777, 0, 0, 1, when},
		"sub/deep/.": {syscall.S_IFDIR | 0o755, 0, 0, 2, when},
	} {
		if err := unix.Lstat(filepath.Join(at, name), &st); err != nil {
			t.Fatal(err)
		}
		if st.Mode != want.mode || st.Uid != want.uid || st.Gid != want.gid || st.Nlink != want.nlink ||
			!time.Unix(st.Mtim.Unix()).Equal(want.mtime) {
			t.Errorf("%s: %+v, want %+v", name, st, want)
		}
	}
	var a, b unix.Stat_t
	_ = unix.Lstat(filepath.Join(at, "file"), &a)
	_ = unix.Lstat(filepath.Join(at, "sub/third"), &b)
	if a.Ino != b.Ino || a.Ino == 0 {
		t.Errorf("inodes %d and %d of one file", a.Ino, b.Ino)
	}
	for _, x := range file.Xattrs {
		buf := make([]byte, 8192)
		n, err := unix.Lgetxattr(filepath.Join(at, "again"), x.Name, buf)
		if err != nil || string(buf[:n]) != x.Value {
			t.Errorf("%s: %d bytes, %v", x.Name, n, err)
		}
	}
	for _, n := range []int{1, 2000, 2048, 2049, 4095} {
		if got, err := os.Readlink(filepath.Join(at, fmt.Sprint("link", n))); err != nil || len(got) != n {
			t.Errorf("link of %d bytes: %d, %v", n, len(got), err)
		}
	}
}

// acl is posix_acl_xattr version 2: user::rw-, user:1:r--, group::r--,
// mask::r--, other::r--.
const acl = "\x02\x00\x00\x00" + "\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\x01\x00\x00\x00" +
	"\x04\x00\x04\x00\xff\xff\xff\xff" + "\x10\x00\x04\x00\xff\xff\xff\xff" + "\x20\x00\x04\x00\xff\xff\xff\xff"

func TestLargeDirectoriesAreFoundByName(t *testing.T) {
	for _, n := range []int{0, 1, 50, 150, 151, 200, 5000} {
		m := newImage(t)
		f := m.regular([]byte("x"))
		names := []string{"!before-dot", "-dash", "...", ".hidden", "..x", "\xff\xfe", strings.Repeat("n", 255)}
		for i := range n {
			names = append(names, fmt.Sprintf("file-with-a-name-%05d", i))
		}
		for _, name := range names {
			m.add(name, f)
		}
		at := m.finish()
		for _, name := range names {
			if _, err := os.Lstat(filepath.Join(at, name)); err != nil {
				t.Errorf("of %d: %v", len(names), err)
			}
		}
		if _, err := os.Lstat(filepath.Join(at, "absent")); !os.IsNotExist(err) {
			t.Errorf("absent: %v", err)
		}
		list, err := os.ReadDir(at)
		if err != nil || len(list) != len(names) {
			t.Errorf("%d names listed, want %d: %v", len(list), len(names), err)
		}
	}
}

func TestFilesBeyondFourGiB(t *testing.T) {
	m := newImage(t)
	const size = 5<<30 + 100
	end := bytes.NewReader([]byte("the very end"))
	d, err := m.w.Store(io.MultiReader(io.LimitReader(zeroes{}, size-end.Size()), end), size, make([]byte, 4<<20))
	if err != nil {
		t.Fatal(err)
	}
	m.add("big", &erofs.Inode{Mode: syscall.S_IFREG | 0o644, Mtime: when, Data: d})
	m.add("after", m.regular([]byte("after")))
	at := m.finish()
	f, err := os.Open(filepath.Join(at, "big"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := make([]byte, 12)
	if _, err := f.ReadAt(got, size-12); err != nil || string(got) != "the very end" {
		t.Errorf("%q, %v", got, err)
	}
	if b, err := os.ReadFile(filepath.Join(at, "after")); err != nil || string(b) != "after" {
		t.Errorf("%q, %v", b, err)
	}
	st, err := m.file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if used := st.Sys().(*syscall.Stat_t).Blocks * 512; used > 1<<20 {
		t.Errorf("5 GiB of zeros take %d bytes", used)
	}
}

type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestDiscardedContentTakesNoSpace(t *testing.T) {
	m := newImage(t)
	gone := m.regular(pattern(8 << 20))
	m.add("kept", m.regular(pattern(5000)))
	at := m.finish()
	if gone.Placed() {
		t.Error("an inode without a name is placed")
	}
	if err := m.w.Discard(gone.Data); err != nil {
		t.Fatal(err)
	}
	st, err := m.file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if used := st.Sys().(*syscall.Stat_t).Blocks * 512; used > 1<<20 {
		t.Errorf("the image takes %d bytes", used)
	}
	if got, err := os.ReadFile(filepath.Join(at, "kept")); err != nil || !bytes.Equal(got, pattern(5000)) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestAnotherReaderAgrees(t *testing.T) {
	m := newImage(t)
	f := m.regular(pattern(10_000))
	m.add("a", f)
	m.add("d", dir(erofs.Entry{Name: "b", Inode: f}))
	if _, err := m.w.Finish(m.root, [16]byte{}); err != nil {
		t.Fatal(err)
	}
	tree, err := goerofs.Open(m.file)
	if err != nil {
		t.Fatal(err)
	}
	got, err := fs.ReadFile(tree, "d/b")
	if err != nil || sha256.Sum256(got) != sha256.Sum256(pattern(10_000)) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestFinishRefusesImpossibleTrees(t *testing.T) {
	shared := dir()
	for name, root := range map[string]*erofs.Inode{
		"file as root":    {Mode: syscall.S_IFREG},
		"slash in a name": dir(erofs.Entry{Name: "a/b", Inode: dir()}),
		"empty name":      dir(erofs.Entry{Name: "", Inode: dir()}),
		"dot dot":         dir(erofs.Entry{Name: "..", Inode: dir()}),
		"long name":       dir(erofs.Entry{Name: strings.Repeat("x", 256), Inode: dir()}),
		"name twice":      dir(erofs.Entry{Name: "a", Inode: dir()}, erofs.Entry{Name: "a", Inode: dir()}),
		"directory twice": dir(erofs.Entry{Name: "a", Inode: shared}, erofs.Entry{Name: "b", Inode: shared}),
		"empty link":      dir(erofs.Entry{Name: "a", Inode: &erofs.Inode{Mode: syscall.S_IFLNK}}),
		"odd attribute":   {Mode: syscall.S_IFDIR, Xattrs: []erofs.Xattr{{"nonsense", "x"}}},
	} {
		m := newImage(t)
		if _, err := m.w.Finish(root, [16]byte{}); err == nil {
			t.Errorf("%s: written without complaint", name)
		}
	}
}

func TestStoreReportsShortContent(t *testing.T) {
	m := newImage(t)
	for _, n := range []int64{10, 5000, 1 << 20} {
		if _, err := m.w.Store(strings.NewReader("short"), n, m.buf); err != io.ErrUnexpectedEOF {
			t.Errorf("%d: %v", n, err)
		}
	}
}

func TestSameTreeGivesSameBytes(t *testing.T) {
	var sums []string
	for range 2 {
		m := newImage(t)
		m.add("b", m.regular(pattern(5000)))
		m.add("a", dir())
		if _, err := m.w.Finish(m.root, [16]byte{9}); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(m.file.Name())
		if err != nil {
			t.Fatal(err)
		}
		sums = append(sums, fmt.Sprintf("%x", sha256.Sum256(b)))
	}
	if d := cmp.Diff(sums[0], sums[1]); d != "" {
		t.Error(d)
	}
}
