package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// overlay is a mounted overlay on layers of its own.
type overlay struct{ dir, root string }

func newOverlay(t *testing.T, lower string) *overlay {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts overlays and makes devices")
	}
	o := &overlay{dir: t.TempDir()}
	o.root = filepath.Join(o.dir, "root")
	for _, d := range []string{"upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(o.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = unix.Unmount(o.root, unix.MNT_DETACH) })
	o.mount(t, lower)
	return o
}

func (o *overlay) mount(t *testing.T, lower string) {
	t.Helper()
	opts := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work,redirect_dir=on,index=off,metacopy=off", lower, o.dir, o.dir)
	if err := unix.Mount("overlay", o.root, "overlay", 0, opts); err != nil {
		t.Fatal(err)
	}
}

func (o *overlay) upper(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Open(filepath.Join(o.dir, "upper"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// tree describes all files below a directory, but for the time of access.
func tree(t *testing.T, root string) []string {
	t.Helper()
	var list []string
	inodes := map[uint64]string{}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		line := fmt.Sprintf("%s %o %d:%d %d.%09d dev=%d", rel, st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec, st.Rdev)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" size=%d sum=%d", len(b), bytes.Count(b, []byte("x")))
		case unix.S_IFLNK:
			target, _ := os.Readlink(path)
			line += " -> " + target
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
			if first, ok := inodes[st.Ino]; ok {
				line += " = " + first
			}
			inodes[st.Ino] = rel
		}
		list = append(list, line+" "+attributes(path))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func attributes(path string) string {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		return ""
	}
	var all []string
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		v := make([]byte, 64<<10)
		if n, err := unix.Lgetxattr(path, name, v); err == nil && name != "security.selinux" {
			all = append(all, fmt.Sprintf("%s=%x", name, v[:n]))
		}
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

// lived is a tree that a guest has changed in every way that there is.
func lived(t *testing.T) (lower string, o *overlay) {
	t.Helper()
	lower = t.TempDir()
	do := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"etc/old", "usr/lib", "opt/pkg", "gone"} {
		do(os.MkdirAll(filepath.Join(lower, d), 0o755))
	}
	for _, f := range []string{"etc/passwd", "etc/old/a", "usr/lib/lib", "opt/pkg/f", "gone/x", "both1"} {
		do(os.WriteFile(filepath.Join(lower, f), []byte("image "+f), 0o644))
	}
	do(os.Link(filepath.Join(lower, "both1"), filepath.Join(lower, "both2")))
	o = newOverlay(t, lower)
	at := func(p string) string { return filepath.Join(o.root, p) }
	do(
		os.WriteFile(at("etc/passwd"), bytes.Repeat([]byte("x"), 100_000), 0o640),
		os.Remove(at("usr/lib/lib")), os.RemoveAll(at("gone")),
		os.RemoveAll(at("etc/old")), os.Mkdir(at("etc/old"), 0o700), os.WriteFile(at("etc/old/new"), nil, 0o600), // opaque
		os.Rename(at("opt/pkg"), at("moved")), os.WriteFile(at("moved/more"), []byte("x"), 0o600), // redirect
		os.WriteFile(at("setuid"), []byte("x"), 0o600), os.Chown(at("setuid"), 7, 8), os.Chmod(at("setuid"), 0o755|os.ModeSetuid),
		os.Link(at("setuid"), at("etc/setuid2")),
		os.Symlink("../anywhere", at("link")), os.Lchown(at("link"), 5, 6),
		unix.Mkfifo(at("fifo"), 0o622), unix.Mknod(at("socket"), unix.S_IFSOCK|0o755, 0),
		unix.Mknod(at("device"), unix.S_IFBLK|0o660, int(unix.Mkdev(7, 300))),
		os.WriteFile(at(".wh.not-a-whiteout"), nil, 0o600),
		os.WriteFile(at("=\n name"), nil, 0o600), unix.Setxattr(at("=\n name"), "user.a=b", []byte("v\x00w"), 0),
		unix.Setxattr(at("moved"), "user.dir", []byte("1"), 0),
		unix.Setxattr(at("setuid"), "security.capability", []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0),
		os.WriteFile(at("holes"), []byte("x"), 0o600), os.Truncate(at("holes"), 64<<20),
		os.WriteFile(at("both1"), []byte("mine"), 0o644),
		os.MkdirAll(at("a/b/c/d"), 0o755), os.Chmod(at("a/b"), 0), os.MkdirAll(at("z/y"), 0o755),
	)
	f, err := os.OpenFile(at("holes"), os.O_WRONLY, 0)
	do(err)
	_, err = f.WriteAt([]byte("xx"), 32<<20)
	do(err, f.Close())
	ts := []unix.Timespec{{Sec: 1, Nsec: 5}, {Sec: 1234567890, Nsec: 987654321}}
	do(unix.UtimesNanoAt(unix.AT_FDCWD, at("a/b"), ts, 0), unix.UtimesNanoAt(unix.AT_FDCWD, at("link"), ts, unix.AT_SYMLINK_NOFOLLOW), unix.UtimesNanoAt(unix.AT_FDCWD, o.root, ts, 0))
	return lower, o
}

func TestTheSameLayerIsTheSameTree(t *testing.T) {
	lower, from := lived(t)
	to := newOverlay(t, lower)
	_ = unix.Unmount(to.root, 0)
	var stream bytes.Buffer
	if err := Write(t.Context(), &stream, from.upper(t)); err != nil {
		t.Fatal(err)
	}
	if stream.Len() > 4<<20 {
		t.Errorf("%d bytes: holes were sent", stream.Len())
	}
	if err := Read(t.Context(), &stream, to.upper(t), Options{IDs: 65536}); err != nil {
		t.Fatal(err)
	}
	to.mount(t, lower)
	if d := cmp.Diff(tree(t, from.root), tree(t, to.root)); d != "" {
		t.Error(d)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(to.root, "holes"), &st); err != nil || st.Blocks > 64 {
		t.Errorf("the holes take %d blocks (%v)", st.Blocks, err)
	}
}

func TestReadRefusesWhatLeadsOut(t *testing.T) {
	for name, entries := range map[string][]tar.Header{
		"dots":               {{Name: "../x", Typeflag: tar.TypeReg}},
		"an absolute name":   {{Name: "/x", Typeflag: tar.TypeReg}},
		"through a link":     {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/etc"}, {Name: "l/x", Typeflag: tar.TypeReg}},
		"a link through one": {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/etc"}, {Name: "h", Typeflag: tar.TypeLink, Linkname: "l/passwd"}},
		"a link out":         {{Name: "h", Typeflag: tar.TypeLink, Linkname: "../../etc/passwd"}},
		"the same twice":     {{Name: "d/", Typeflag: tar.TypeDir}, {Name: "d", Typeflag: tar.TypeReg}},
		"a root that's none": {{Name: ".", Typeflag: tar.TypeReg}},
		"many ids":           {{Name: "f", Typeflag: tar.TypeReg, Uid: 65536}},
		"overlay's own":      {{Name: "f", Typeflag: tar.TypeReg, PAXRecords: map[string]string{paxXattr + "trusted.overlay.metacopy": ""}}},
		"a lying extent":     {{Name: "f", Typeflag: tar.TypeReg, Size: 16, PAXRecords: map[string]string{recordSparse: "4"}}},
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			w := tar.NewWriter(&b)
			for _, h := range entries {
				h.Format, h.Mode = tar.FormatPAX, 0o600
				if err := w.WriteHeader(&h); err != nil {
					t.Fatal(err)
				}
				if h.Size > 0 {
					_, _ = w.Write(bytes.Repeat([]byte{0x7f}, int(h.Size)))
				}
			}
			_ = w.Close()
			dir, err := os.Open(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			defer dir.Close()
			if err := Read(t.Context(), &b, dir, Options{IDs: 65536}); err == nil {
				t.Error("it was taken")
			}
		})
	}
}

func TestReadEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := Read(ctx, strings.NewReader(""), dir, Options{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestTooDeepATreeIsSaid(t *testing.T) {
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	at := int(dir.Fd())
	for range deepest + 2 {
		if err := unix.Mkdirat(at, "d", 0o755); err != nil {
			t.Fatal(err)
		}
		fd, err := unix.Openat(at, "d", unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if at != int(dir.Fd()) {
			unix.Close(at)
		}
		at = fd
	}
	unix.Close(at)
	if err := Write(t.Context(), io.Discard, dir); !api.IsCode(err, api.CodeUnsupported) {
		t.Error(err)
	}
}

func FuzzRead(f *testing.F) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	_ = w.WriteHeader(&tar.Header{Name: "./", Typeflag: tar.TypeDir, Format: tar.FormatPAX, Mode: 0o755})
	_ = w.WriteHeader(&tar.Header{Name: "d/", Typeflag: tar.TypeDir, Format: tar.FormatPAX, Mode: 0o755})
	_ = w.WriteHeader(&tar.Header{Name: "d/f", Typeflag: tar.TypeReg, Format: tar.FormatPAX, Mode: 0o600, Size: 17, PAXRecords: map[string]string{recordSparse: "9", paxXattr + "user.a": "b"}})
	_, _ = w.Write([]byte{15: 1, 16: 'x'})
	_ = w.WriteHeader(&tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "d/f", Format: tar.FormatPAX})
	_ = w.Close()
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, stream []byte) {
		outer := t.TempDir()
		if err := os.Mkdir(filepath.Join(outer, "upper"), 0o755); err != nil {
			t.Fatal(err)
		}
		dir, err := os.Open(filepath.Join(outer, "upper"))
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		_ = Read(t.Context(), bytes.NewReader(stream), dir, Options{IDs: 65536})
		if names, err := os.ReadDir(outer); err != nil || len(names) != 1 {
			t.Errorf("outside: %v, %v", names, err)
		}
		_ = os.Chmod(filepath.Join(outer, "upper"), 0o700)
	})
}
