package agent_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/agent"
	"github.com/cleave-project/cleave/api"
)

// makeTree fills dir with one of everything that a copy must keep.
func makeTree(t testing.TB, dir string) {
	t.Helper()
	mk := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	p := func(name string) string { return filepath.Join(dir, name) }
	mk(os.MkdirAll(p("sub/deep"), 0o755))
	mk(os.Mkdir(p("closed"), 0o700))
	mk(os.WriteFile(p("empty"), nil, 0o644))
	mk(os.WriteFile(p("sub/text"), []byte("hello\n"), 0o640))
	big := make([]byte, 1<<20+17)
	for i := range big {
		big[i] = byte(i * 7 >> 3)
	}
	mk(os.WriteFile(p("sub/deep/big"), big, 0o600))
	mk(os.Link(p("sub/deep/big"), p("closed/other")))
	mk(os.Symlink("../sub/text", p("closed/link")))
	mk(os.Symlink("/nowhere/at/all", p("dangling")))
	mk(unix.Mkfifo(p("fifo"), 0o666))
	mk(os.WriteFile(p("setuid"), []byte("#!"), 0o755))
	mk(os.Chown(p("setuid"), 12, 34))
	mk(os.Lchown(p("dangling"), 56, 78))
	mk(os.Chmod(p("setuid"), os.ModeSetuid|os.ModeSetgid|0o755))
	mk(os.Chmod(p("sub"), os.ModeSticky|0o777))
	mk(os.WriteFile(p("sub/"+strings.Repeat("long", 40)+"-ü \n\xff"), []byte("x"), 0o444))
	mk(unix.Setxattr(p("sub/text"), "user.note", []byte("a\x00b"), 0))
	mk(unix.Setxattr(p("sub/deep"), "user.dir", []byte("d"), 0))
	// cap_net_bind_service=ep, revision 2 (capabilities(7)).
	mk(unix.Setxattr(p("empty"), "security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
	old := time.Unix(1234567890, 123456789)
	mk(filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		ts := unix.NsecToTimespec(old.UnixNano())
		return errors.Join(err, unix.UtimesNanoAt(unix.AT_FDCWD, name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
	}))
}

// describeTree is everything about a tree that a copy must keep, by name.
func describeTree(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	first := map[uint64]string{}
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, name)
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err != nil {
			return err
		}
		s := fmt.Sprintf("%o %d:%d %d.%09d", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			target, _ := os.Readlink(name)
			s += " -> " + target
		case d.Type().IsRegular():
			b, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			s += fmt.Sprintf(" %d %x", len(b), sha256.Sum256(b))
			if st.Nlink > 1 {
				if first[st.Ino] == "" {
					first[st.Ino] = rel
				}
				s += " is " + first[st.Ino]
			}
		}
		list := make([]byte, 4096)
		n, _ := unix.Llistxattr(name, list)
		for attr := range strings.SplitSeq(string(list[:max(n, 0)]), "\x00") {
			if attr != "" && attr != "security.selinux" {
				v := make([]byte, 4096)
				n, _ := unix.Lgetxattr(name, attr, v)
				s += fmt.Sprintf(" %s=%x", attr, v[:max(n, 0)])
			}
		}
		out[rel] = s
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestCopyKeepsATree(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("owners and capabilities need root")
	}
	c := startServe(t).dial(t)
	src, dst := t.TempDir(), t.TempDir()
	makeTree(t, src)
	for range 2 { // the second time everything exists
		r, err := c.Get(testContext(t), src+"/.")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if err := c.Put(testContext(t), dst, r); err != nil {
			t.Fatal(err)
		}
		want, got := describeTree(t, src), describeTree(t, dst)
		delete(want, ".") // the target keeps its own
		delete(got, ".")
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
}

func names(t testing.TB, r io.Reader) (list []string, err error) {
	t.Helper()
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return list, err
		}
		list = append(list, h.Name)
	}
	_, err = io.Copy(io.Discard, r) // the end of the stream, not of the archive
	return list, err
}

func TestGetNamesEntriesAfterThePath(t *testing.T) {
	c := startServe(t).dial(t)
	dir := t.TempDir()
	os.MkdirAll(dir+"/d", 0o755)
	os.WriteFile(dir+"/d/f", []byte("x"), 0o644)
	os.Symlink("d", dir+"/l")
	for path, want := range map[string][]string{
		"/d":      {"d/", "d/f"},
		"/d/":     {"d/", "d/f"},
		"/d/.":    {"./", "f"},
		"/d/f":    {"f"},
		"/l":      {"l"},
		"/l/":     {"l/", "l/f"},
		"/d/../l": {"l"},
	} {
		r, err := c.Get(testContext(t), dir+path)
		if err != nil {
			t.Fatal(path, err)
		}
		got, err := names(t, r)
		if err != nil {
			t.Error(path, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(path, diff)
		}
		r.Close()
	}
}

func TestFilesThatAreNotThere(t *testing.T) {
	c := startServe(t).dial(t)
	ctx := testContext(t)
	_, statErr := c.Stat(ctx, "/no/such")
	_, getErr := c.Get(ctx, "/no/such")
	for what, err := range map[string]error{
		"stat": statErr, "get": getErr, "put": c.Put(ctx, "/no/such", bytes.NewReader(nil)),
	} {
		if !api.IsCode(err, api.CodeNotFound) || !strings.Contains(err.Error(), "/no/such") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := c.Put(ctx, "/etc/passwd", bytes.NewReader(nil)); !api.IsCode(err, api.CodeInvalid) {
		t.Errorf("put into a file: %v", err)
	}
	if _, err := c.Stat(ctx, "relative"); !api.IsCode(err, api.CodeInvalid) {
		t.Errorf("relative path: %v", err)
	}
}

func TestStatDescribesTheLinkItself(t *testing.T) {
	c := startServe(t).dial(t)
	dir := t.TempDir()
	os.Symlink("/etc", dir+"/l")
	info, err := c.Stat(t.Context(), dir+"/l")
	if err != nil || info.Target != "/etc" || fs.FileMode(info.Mode).Type() != fs.ModeSymlink || info.Name != "l" {
		t.Errorf("got %+v, %v", info, err)
	}
	info, err = c.Stat(t.Context(), dir)
	if err != nil || !fs.FileMode(info.Mode).IsDir() {
		t.Errorf("got %+v, %v", info, err)
	}
}

// archive makes a tar stream of headers; regular files hold their own name.
func archive(t testing.TB, headers ...tar.Header) io.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(h.Name))
		}
		h.Mode |= 0o700
		h.Uid, h.Gid = os.Geteuid(), os.Getegid()
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			io.WriteString(w, h.Name)
		}
	}
	w.Close()
	return &b
}

func TestPutStaysBelowItsTarget(t *testing.T) {
	c := startServe(t).dial(t)
	for name, headers := range map[string][]tar.Header{
		"dotdot":           {{Name: "a/../../outside/f"}},
		"absolute link":    {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "%OUT"}, {Name: "l/f"}},
		"relative link":    {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../outside"}, {Name: "l/f"}},
		"directory's link": {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../outside"}, {Name: "l", Typeflag: tar.TypeDir}, {Name: "l/f"}},
		"link's link":      {{Name: "m", Typeflag: tar.TypeSymlink, Linkname: "l"}, {Name: "l", Typeflag: tar.TypeSymlink, Linkname: ".."}, {Name: "m/outside/f"}},
		"hard link":        {{Name: "h", Typeflag: tar.TypeLink, Linkname: "../outside/victim"}},
		"hard link in":     {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../outside"}, {Name: "h", Typeflag: tar.TypeLink, Linkname: "l/victim"}},
	} {
		t.Run(name, func(t *testing.T) {
			top := t.TempDir()
			os.MkdirAll(top+"/in", 0o755)
			os.MkdirAll(top+"/outside", 0o755)
			os.WriteFile(top+"/outside/victim", []byte("victim"), 0o644)
			for i := range headers {
				headers[i].Linkname = strings.ReplaceAll(headers[i].Linkname, "%OUT", top+"/outside")
			}
			err := c.Put(testContext(t), top+"/in", archive(t, headers...))
			if !api.IsCode(err, api.CodeInvalid) {
				t.Errorf("got %v", err)
			}
			left, _ := os.ReadDir(top + "/outside")
			if len(left) != 1 {
				t.Errorf("outside now has %v", left)
			}
			var st unix.Stat_t
			if unix.Stat(top+"/outside/victim", &st); st.Nlink != 1 {
				t.Error("the victim was linked")
			}
		})
	}
}

func TestPutReplacesWhatIsThere(t *testing.T) {
	c := startServe(t).dial(t)
	dir := t.TempDir()
	os.WriteFile(dir+"/f", []byte("old"), 0o644)
	os.Symlink("elsewhere", dir+"/s")
	os.Mkdir(dir+"/d", 0o751)
	os.WriteFile(dir+"/d/keep", nil, 0o644)
	os.Symlink("d", dir+"/ld")
	err := c.Put(testContext(t), dir, archive(t,
		tar.Header{Name: "f"}, tar.Header{Name: "/s"}, tar.Header{Name: "./d/", Typeflag: tar.TypeDir},
		tar.Header{Name: "d/new/parents/f"}, tar.Header{Name: "ld/", Typeflag: tar.TypeDir}, tar.Header{Name: "ld/g"},
		tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "f"}, tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "f"}))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"f": "f", "s": "/s", "d/g": "ld/g", "d/new/parents/f": "d/new/parents/f", "d/keep": "", "h": "f"} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != want {
			t.Errorf("%s holds %q, %v", name, b, err)
		}
	}
	if info, _ := os.Stat(dir + "/d"); info.Mode().Perm() != 0o751 {
		t.Errorf("the directory that was there has mode %v", info.Mode())
	}
	if list, _ := filepath.Glob(dir + "/.cleave-*"); list != nil {
		t.Errorf("left over: %v", list)
	}
	for name, headers := range map[string][]tar.Header{
		"file over directory": {{Name: "d"}},
		"directory over file": {{Name: "f/", Typeflag: tar.TypeDir}},
	} {
		if err := c.Put(testContext(t), dir, archive(t, headers...)); !api.IsCode(err, api.CodeExists) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPutReportsWhatItLeavesOut(t *testing.T) {
	c := startServe(t).dial(t)
	dir := t.TempDir()
	err := c.Put(testContext(t), dir, archive(t,
		tar.Header{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}, tar.Header{Name: "after"}))
	if !api.IsCode(err, api.CodeUnsupported) || !strings.Contains(err.Error(), "device null") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(dir + "/after"); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(dir + "/null"); err == nil {
		t.Error("the device was made")
	}
}

func TestGetReportsSockets(t *testing.T) {
	c := startServe(t).dial(t)
	dir := t.TempDir()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: dir + "/sock"}); err != nil {
		t.Fatal(err)
	}
	os.WriteFile(dir+"/z", nil, 0o644)
	r, err := c.Get(testContext(t), dir+"/.")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got, err := names(t, r)
	if !api.IsCode(err, api.CodeUnsupported) || !strings.Contains(err.Error(), "sock") {
		t.Errorf("got %v", err)
	}
	if diff := cmp.Diff([]string{"./", "z"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestPutIntoAFullFileSystem(t *testing.T) {
	c := startServe(t).dial(t)
	dir := mountTmpfs(t, "size=1m")
	os.WriteFile(dir+"/f", []byte("old"), 0o644)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	w.WriteHeader(&tar.Header{Name: "f", Size: 50 << 20, Mode: 0o644})
	w.Write(make([]byte, 50<<20))
	w.Close()
	err := c.Put(testContext(t), dir, &b)
	if !api.IsCode(err, api.CodeNoSpace) {
		t.Errorf("got %v", err)
	}
	if got, _ := os.ReadFile(dir + "/f"); string(got) != "old" {
		t.Errorf("the old file now holds %d bytes", len(got))
	}
	if list, _ := os.ReadDir(dir); len(list) != 1 {
		t.Errorf("left over: %v", list)
	}
	must(unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	if err := c.Put(testContext(t), dir, archive(t, tar.Header{Name: "x"})); !api.IsCode(err, api.CodeForbidden) {
		t.Errorf("read-only: %v", err)
	}
}

func mountTmpfs(t testing.TB, options string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Skipf("mounting a tmpfs: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// A file that is mounted, as /etc/hosts is in a guest, can't be replaced.
func TestPutWritesIntoAMountedFile(t *testing.T) {
	top := mountTmpfs(t, "")
	c := startServe(t).dial(t)
	os.WriteFile(top+"/source", []byte("much longer than the new content"), 0o644)
	os.Mkdir(top+"/etc", 0o755)
	os.WriteFile(top+"/etc/hosts", nil, 0o644)
	must(unix.Mount(top+"/source", top+"/etc/hosts", "", unix.MS_BIND, ""))
	t.Cleanup(func() { unix.Unmount(top+"/etc/hosts", unix.MNT_DETACH) })
	if err := c.Put(testContext(t), top+"/etc", archive(t, tar.Header{Name: "hosts"})); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(top + "/source"); string(b) != "hosts" {
		t.Errorf("it holds %q", b)
	}
	if list, _ := os.ReadDir(top + "/etc"); len(list) != 1 {
		t.Errorf("left over: %v", list)
	}
}

func TestPutRefusesABrokenStream(t *testing.T) {
	c := startServe(t).dial(t)
	full, _ := io.ReadAll(archive(t, tar.Header{Name: "some-file-name"}))
	for name, stream := range map[string]io.Reader{
		"cut":     bytes.NewReader(full[:520]),
		"garbage": bytes.NewReader(bytes.Repeat([]byte("junk"), 1<<20)),
	} {
		dir := t.TempDir()
		if err := c.Put(testContext(t), dir, stream); !api.IsCode(err, api.CodeInvalid) {
			t.Errorf("%s: %v", name, err)
		}
		if list, _ := os.ReadDir(dir); len(list) != 0 {
			t.Errorf("%s left %v", name, list)
		}
	}
	failing := io.MultiReader(bytes.NewReader(full[:512]), readerFunc(func([]byte) (int, error) { return 0, errors.New("disk on fire") }))
	if err := c.Put(testContext(t), t.TempDir(), failing); err == nil || !strings.Contains(err.Error(), "disk on fire") {
		t.Errorf("got %v", err)
	}
	if _, err := c.Ping(t.Context()); err != nil {
		t.Errorf("the connection is broken: %v", err)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestGetCanBeLeftEarly(t *testing.T) {
	c := startServe(t).dial(t)
	dir := t.TempDir()
	os.WriteFile(dir+"/f", make([]byte, 64<<20), 0o644)
	for range 20 {
		r, err := c.Get(testContext(t), dir)
		if err != nil {
			t.Fatal(err)
		}
		io.ReadFull(r, make([]byte, 1000))
		r.Close()
	}
	if _, err := c.Ping(t.Context()); err != nil {
		t.Error(err)
	}
}

func benchmarkFile(b *testing.B) (c *agent.Client, dir string, size int64) {
	dir = mountTmpfs(b, "size=1g") // what is measured is the agent, not a disk
	size = 256 << 20
	f, err := os.Create(dir + "/f")
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	io.CopyN(f, rand.NewChaCha8([32]byte{}), size)
	return startServe(b).dial(b), dir, size
}

func BenchmarkGet(b *testing.B) {
	c, dir, size := benchmarkFile(b)
	b.SetBytes(size)
	for b.Loop() {
		r, err := c.Get(b.Context(), dir+"/f")
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			b.Fatal(err)
		}
		r.Close()
	}
}

func BenchmarkPut(b *testing.B) {
	c, dir, size := benchmarkFile(b)
	b.SetBytes(size)
	os.Mkdir(dir+"/to", 0o755)
	zeros := readerFunc(func(p []byte) (int, error) { return len(p), nil })
	for b.Loop() {
		var head bytes.Buffer
		tar.NewWriter(&head).WriteHeader(&tar.Header{Name: "f", Size: size, Mode: 0o644})
		if err := c.Put(b.Context(), dir+"/to", io.MultiReader(&head, io.LimitReader(zeros, size))); err != nil {
			b.Fatal(err)
		}
	}
}
