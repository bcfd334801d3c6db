package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/image/erofs"
	"github.com/cleave-project/cleave/image/imagetest"
)

type file = imagetest.File

// merge reads and merges layers and lists the result: "name=content",
// "name/", "name->target", and "name==first" for a further name of a file.
func merge(t testing.TB, layers ...[]byte) ([]string, error) {
	t.Helper()
	return mergeTo(t, tempFile(t), layers...)
}

func mergeTo(t testing.TB, f *os.File, layers ...[]byte) ([]string, error) {
	t.Helper()
	w := erofs.NewWriter(f)
	budget := NewBudget(64 << 20)
	tree := NewTree()
	for _, b := range layers {
		l, err := Read(t.Context(), bytes.NewReader(b), Options{Image: w, Budget: budget})
		if err != nil {
			return nil, err
		}
		if err := tree.Apply(l); err != nil {
			return nil, err
		}
	}
	root := tree.Root()
	if _, err := w.Finish(root, [16]byte{}); err != nil {
		return nil, fmt.Errorf("finish: %w", err)
	}
	if err := tree.Hidden(w.Discard); err != nil {
		return nil, err
	}
	return list(t, w, root), nil
}

func list(t testing.TB, w *erofs.Writer, root *erofs.Inode) []string {
	t.Helper()
	var lines []string
	first := map[*erofs.Inode]string{}
	var walk func(prefix string, d *erofs.Inode)
	walk = func(prefix string, d *erofs.Inode) {
		for _, e := range d.Entries {
			name := prefix + e.Name
			if old, ok := first[e.Inode]; ok {
				lines = append(lines, name+"=="+old)
				continue
			}
			first[e.Inode] = name
			switch e.Inode.Type() {
			case syscall.S_IFDIR:
				lines = append(lines, name+"/")
				walk(name+"/", e.Inode)
			case syscall.S_IFLNK:
				lines = append(lines, name+"->"+e.Inode.Target)
			case syscall.S_IFREG:
				body, err := io.ReadAll(w.Open(e.Inode.Data))
				if err != nil {
					t.Fatal(err)
				}
				lines = append(lines, name+"="+string(body))
			default:
				lines = append(lines, fmt.Sprintf("%s %o", name, e.Inode.Mode))
			}
		}
	}
	walk("", root)
	slices.Sort(lines)
	return lines
}

func TestMergeFollowsTheLayerRules(t *testing.T) {
	link := func(name, target string) file { return file{Name: name, Type: tar.TypeSymlink, Link: target} }
	hard := func(name, target string) file { return file{Name: name, Type: tar.TypeLink, Link: target} }
	for _, c := range []struct {
		name   string
		layers [][]file
		want   []string
	}{
		{"files replace files", [][]file{{{Name: "a", Body: "1"}}, {{Name: "a", Body: "2"}}}, []string{"a=2"}},
		{
			"names are normalized",
			[][]file{{{Name: "./"}, {Name: "./d/"}, {Name: "/d/a", Body: "1"}, {Name: "d//b/./c", Body: "2"}}},
			[]string{"d/", "d/a=1", "d/b/", "d/b/c=2"},
		},
		{"parents are implied", [][]file{{{Name: "x/y/z", Body: "1"}}}, []string{"x/", "x/y/", "x/y/z=1"}},
		{
			"whiteouts hide files",
			[][]file{{{Name: "d/"}, {Name: "d/a"}, {Name: "d/b", Body: "1"}}, {{Name: "d/.wh.a"}}},
			[]string{"d/", "d/b=1"},
		},
		{"whiteouts hide directories", [][]file{{{Name: "d/a"}, {Name: "e/"}}, {{Name: ".wh.d"}}}, []string{"e/"}},
		{
			"whiteouts of nothing do nothing",
			[][]file{{{Name: "a", Body: "1"}}, {{Name: ".wh.b"}, {Name: "no/such/.wh.c"}, {Name: "a/.wh.d"}}},
			[]string{"a=1"},
		},
		{"whiteouts spare their own layer", [][]file{{{Name: "d/low"}}, {{Name: "d/new", Body: "1"}, {Name: ".wh.d"}}}, []string{"d/", "d/new=1"}},
		{"whiteouts come first or last", [][]file{{{Name: "d/low"}}, {{Name: ".wh.d"}, {Name: "d/new", Body: "1"}}}, []string{"d/", "d/new=1"}},
		{"a whiteout and its file in one layer", [][]file{{{Name: "a", Body: "1"}}, {{Name: "a", Body: "2"}, {Name: ".wh.a"}}}, []string{"a=2"}},
		{
			"opaque directories hide what is below",
			[][]file{{{Name: "d/a"}, {Name: "d/s/b"}}, {{Name: "d/"}, {Name: "d/.wh..wh..opq"}, {Name: "d/c", Body: "1"}}},
			[]string{"d/", "d/c=1"},
		},
		{
			"opaque markers may come last",
			[][]file{{{Name: "d/a"}, {Name: "d/s/b"}}, {{Name: "d/"}, {Name: "d/s/c", Body: "1"}, {Name: "d/.wh..wh..opq"}}},
			[]string{"d/", "d/s/", "d/s/c=1"},
		},
		{"an opaque root", [][]file{{{Name: "a"}, {Name: "b/c"}}, {{Name: ".wh..wh..opq"}, {Name: "n", Body: "1"}}}, []string{"n=1"}},
		{"AUFS leftovers are ignored", [][]file{{{Name: ".wh..wh.plnk/"}, {Name: ".wh..wh.plnk/1.2"}, {Name: ".wh..wh.aufs"}, {Name: "a", Body: "1"}}}, []string{"a=1"}},
		{"a file replaces a directory", [][]file{{{Name: "d/a"}}, {{Name: "d", Body: "1"}}}, []string{"d=1"}},
		{"a directory replaces a file", [][]file{{{Name: "d", Body: "1"}}, {{Name: "d/"}, {Name: "d/a", Body: "2"}}}, []string{"d/", "d/a=2"}},
		{"a directory keeps its content", [][]file{{{Name: "d/a", Body: "1"}}, {{Name: "d/", Mode: 0o700}}}, []string{"d/", "d/a=1"}},
		{
			"a directory replaces a link",
			[][]file{{{Name: "t/a", Body: "1"}, link("d", "t")}, {{Name: "d/"}, {Name: "d/b", Body: "2"}}},
			[]string{"d/", "d/b=2", "t/", "t/a=1"},
		},
		{"a link replaces a directory", [][]file{{{Name: "d/a"}}, {link("d", "x")}}, []string{"d->x"}},
		{
			"linked parents are followed",
			[][]file{{{Name: "usr/lib/a", Body: "1"}, link("lib", "usr/lib")}, {{Name: "lib/b", Body: "2"}}},
			[]string{"lib->usr/lib", "usr/", "usr/lib/", "usr/lib/a=1", "usr/lib/b=2"},
		},
		{
			"absolute links stay inside",
			[][]file{{{Name: "etc/"}, link("out", "/etc")}, {{Name: "out/passwd", Body: "1"}}},
			[]string{"etc/", "etc/passwd=1", "out->/etc"},
		},
		{
			"links upwards stay inside",
			[][]file{{link("up", "../../../../etc")}, {{Name: "up/passwd", Body: "1"}}},
			[]string{"etc/", "etc/passwd=1", "up->../../../../etc"},
		},
		{
			"links of links",
			[][]file{{link("a", "b"), link("b", "c/d"), {Name: "c/d/"}}, {{Name: "a/x", Body: "1"}}},
			[]string{"a->b", "b->c/d", "c/", "c/d/", "c/d/x=1"},
		},
		{
			"dangling linked parents are made",
			[][]file{{link("a", "not/yet")}, {{Name: "a/x", Body: "1"}}},
			[]string{"a->not/yet", "not/", "not/yet/", "not/yet/x=1"},
		},
		{
			"a last component is never followed",
			[][]file{{{Name: "t", Body: "1"}, link("a", "t")}, {{Name: "a", Body: "2"}}},
			[]string{"a=2", "t=1"},
		},
		{
			"whiteouts go through linked parents",
			[][]file{{{Name: "usr/lib/a"}, link("lib", "usr/lib")}, {{Name: "lib/.wh.a"}}},
			[]string{"lib->usr/lib", "usr/", "usr/lib/"},
		},
		{"a whiteout removes a link, not its target", [][]file{{{Name: "t", Body: "1"}, link("a", "t")}, {{Name: ".wh.a"}}}, []string{"t=1"}},
		{"hard links", [][]file{{{Name: "a", Body: "1"}, hard("b", "a"), hard("d/c", "./b")}}, []string{"a=1", "b==a", "d/", "d/c==a"}},
		{"hard links to lower layers", [][]file{{{Name: "d/a", Body: "1"}}, {hard("b", "d/a")}}, []string{"b=1", "d/", "d/a==b"}},
		{"a hard link outlives its target", [][]file{{{Name: "a", Body: "1"}, hard("b", "a")}, {{Name: ".wh.a"}}}, []string{"b=1"}},
		{"replacing one name leaves the others", [][]file{{{Name: "a", Body: "1"}, hard("b", "a")}, {{Name: "a", Body: "2"}}}, []string{"a=2", "b=1"}},
		{"a hard link to itself", [][]file{{{Name: "a", Body: "1"}, hard("a", "a")}}, []string{"a=1"}},
		{"a hard link to a symbolic link", [][]file{{link("a", "x"), hard("b", "a")}}, []string{"a->x", "b==a"}},
		{
			"hard links through linked parents",
			[][]file{{{Name: "usr/lib/a", Body: "1"}, link("lib", "usr/lib")}, {hard("lib/b", "lib/a")}},
			[]string{"lib->usr/lib", "usr/", "usr/lib/", "usr/lib/a=1", "usr/lib/b==usr/lib/a"},
		},
		{
			"devices are left out",
			[][]file{{{Name: "dev/null", Type: tar.TypeChar, Major: 1, Minor: 3}, {Name: "dev/sda", Type: tar.TypeBlock}, {Name: "dev/f", Type: tar.TypeFifo}}},
			[]string{"dev/", "dev/f 10644"},
		},
		{"overlay whiteout devices too", [][]file{{{Name: "a", Body: "1"}}, {{Name: "a", Type: tar.TypeChar}}}, nil},
		{"hard links to devices go with them", [][]file{{{Name: "null", Type: tar.TypeChar, Major: 1, Minor: 3}, hard("n", "null")}}, nil},
		{"names that only look like whiteouts", [][]file{{{Name: "a.wh.b", Body: "1"}, {Name: ".whx", Body: "2"}}}, []string{".whx=2", "a.wh.b=1"}},
		{"layers may repeat", [][]file{{{Name: "d/a", Body: "1"}}, {{Name: ".wh.d"}}, {{Name: "d/a", Body: "1"}}}, []string{"d/", "d/a=1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var layers [][]byte
			for _, l := range c.layers {
				layers = append(layers, imagetest.Tar(t, l...))
			}
			got, err := merge(t, layers...)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestMergeRefusesTricks(t *testing.T) {
	long := strings.Repeat("x", 256)
	deep := strings.Repeat("d/", 2047) + "d"
	for _, c := range []struct {
		name   string
		layers [][]file
	}{
		{"up and out", [][]file{{{Name: "../a"}}}},
		{"up in the middle", [][]file{{{Name: "a/../../b"}}}},
		{"hard link up and out", [][]file{{{Name: "a", Type: tar.TypeLink, Link: "../../etc/passwd"}}}},
		{"hard link to nothing", [][]file{{{Name: "a", Type: tar.TypeLink, Link: "b"}}}},
		{"hard link to a directory", [][]file{{{Name: "d/"}, {Name: "a", Type: tar.TypeLink, Link: "d"}}}},
		{"hard link to the root", [][]file{{{Name: "a", Type: tar.TypeLink, Link: "/"}}}},
		{"hard link through a file", [][]file{{{Name: "f"}, {Name: "a", Type: tar.TypeLink, Link: "f/x"}}}},
		{"long name", [][]file{{{Name: long}}}},
		{"long name in the middle", [][]file{{{Name: "a/" + long + "/b"}}}},
		{"long path", [][]file{{{Name: strings.Repeat("abcdefg/", 600) + "x"}}}},
		{"file as parent", [][]file{{{Name: "a"}, {Name: "a/b"}}}},
		{"file as parent in a lower layer", [][]file{{{Name: "a"}}, {{Name: "a/b"}}}},
		{"link to a file as parent", [][]file{{{Name: "f"}, {Name: "a", Type: tar.TypeSymlink, Link: "f"}, {Name: "a/b"}}}},
		{"link loop as parent", [][]file{{{Name: "a", Type: tar.TypeSymlink, Link: "b"}, {Name: "b", Type: tar.TypeSymlink, Link: "a"}, {Name: "a/x"}}}},
		{"link to itself as parent", [][]file{{{Name: "a", Type: tar.TypeSymlink, Link: "a/a"}, {Name: "a/x"}}}},
		{"file as root", [][]file{{{Name: ".", Type: tar.TypeReg}}}},
		{"link as root", [][]file{{{Name: ".", Type: tar.TypeSymlink, Link: "/etc"}}}},
		{"link with a huge target", [][]file{{{Name: "a", Type: tar.TypeSymlink, Link: strings.Repeat("t", 4096)}}}},
		{"link whose target makes long names", [][]file{{{Name: "a", Type: tar.TypeSymlink, Link: long + "/b"}, {Name: "a/x"}}}},
		{"whiteout of nothing", [][]file{{{Name: ".wh."}}}},
		{"whiteout of dot dot", [][]file{{{Name: "d/.wh..."}}}},
		{"whiteout of dot", [][]file{{{Name: "d/.wh.."}}}},
		{"whiteout as parent", [][]file{{{Name: ".wh.d/a"}}}},
		{"nested without end", [][]file{{{Name: deep}, {Name: "l", Type: tar.TypeSymlink, Link: strings.Repeat("d/", 2040)}, {Name: "l/" + strings.Repeat("e/", 2000)}}}},
		{"unknown type", [][]file{{{Name: "a", Type: 'Z'}}}},
		{"huge attribute", [][]file{{{Name: "a", Xattrs: map[string]string{"user.x": strings.Repeat("v", 65536)}}}}},
		{"endless attribute name", [][]file{{{Name: "a", Xattrs: map[string]string{"user." + strings.Repeat("n", 256): "v"}}}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var layers [][]byte
			for _, l := range c.layers {
				layers = append(layers, imagetest.Tar(t, l...))
			}
			if got, err := merge(t, layers...); !api.IsCode(err, api.CodeCorrupt) {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
}

func TestReadRefusesDamagedStreams(t *testing.T) {
	whole := imagetest.Tar(t, file{Name: "a", Body: strings.Repeat("x", 5000)})
	for name, b := range map[string][]byte{
		"cut in a file": whole[:3000],
		"no tar at all": bytes.Repeat([]byte("not a tar file "), 100),
	} {
		if _, err := merge(t, b); !api.IsCode(err, api.CodeCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReadStopsAtItsBudget(t *testing.T) {
	for name, files := range map[string][]file{
		"one file":         {{Name: "a", Body: strings.Repeat("x", 3<<20)}},
		"many files":       {{Name: "a", Body: strings.Repeat("x", 1<<20)}, {Name: "b", Body: strings.Repeat("x", 1<<20)}},
		"a size that lies": {{Name: "a", Size: 1 << 62}},
	} {
		w := erofs.NewWriter(tempFile(t))
		_, err := Read(t.Context(), bytes.NewReader(imagetest.Tar(t, files...)), Options{Image: w, Budget: NewBudget(2 << 20)})
		if !api.IsCode(err, api.CodeCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
		if w.Allocated() > 4<<20 {
			t.Errorf("%s: %d bytes were taken", name, w.Allocated())
		}
	}
}

func TestReadEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := Read(ctx, bytes.NewReader(imagetest.Tar(t, file{Name: "a"})), Options{Image: erofs.NewWriter(tempFile(t)), Budget: NewBudget(1 << 20)})
	if err != context.Canceled {
		t.Error(err)
	}
}

func TestReadKeepsOnlyHarmlessAttributes(t *testing.T) {
	kept := map[string]string{"security.capability": "cap", "user.mine": "1", "system.posix_acl_access": "acl"}
	all := map[string]string{"trusted.overlay.opaque": "y", "user.overlay.redirect": "/", "security.selinux": "label", "security.ima": "x", "nonsense": "z"}
	for k, v := range kept {
		all[k] = v
	}
	l, err := Read(t.Context(), bytes.NewReader(imagetest.Tar(t, file{Name: "a", Xattrs: all})),
		Options{Image: erofs.NewWriter(tempFile(t)), Budget: NewBudget(1 << 20)})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, x := range l.entries[0].inode.Xattrs {
		got[x.Name] = x.Value
	}
	if d := cmp.Diff(kept, got); d != "" || len(l.Dropped) != 5 {
		t.Errorf("%s dropped %q", d, l.Dropped)
	}
}

func TestPlainStreamsHaveNoWhiteouts(t *testing.T) {
	w := erofs.NewWriter(tempFile(t))
	l, err := Read(t.Context(), bytes.NewReader(imagetest.Tar(t, file{Name: "a"}, file{Name: ".wh.a"})),
		Options{Image: w, Budget: NewBudget(1 << 20), Plain: true})
	if err != nil {
		t.Fatal(err)
	}
	tree := NewTree()
	if err := tree.Apply(l); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{".wh.a=", "a="}, list(t, w, tree.Root())); d != "" {
		t.Error(d)
	}
}

// An image whose names cost much more to resolve than to write must be given
// up, not worked on for hours.
func TestMergeBoundsItsWork(t *testing.T) {
	files := []file{{Name: strings.Repeat("d/", 1900)}}
	target := strings.Repeat("./", 2000) + "d"
	for i := range 39 {
		files = append(files, file{Name: fmt.Sprint("l", i), Type: tar.TypeSymlink, Link: strings.Repeat("./", 2000) + fmt.Sprint("l", i+1)})
	}
	files = append(files, file{Name: "l39", Type: tar.TypeSymlink, Link: target})
	for i := range 4000 {
		files = append(files, file{Name: fmt.Sprintf("l0/%d/x", i)}, file{Name: fmt.Sprintf("d/%d/y", i)})
	}
	if _, err := merge(t, imagetest.Tar(t, files...)); !api.IsCode(err, api.CodeCorrupt) {
		t.Error(err)
	}
}

func TestLookupFollowsLinksInside(t *testing.T) {
	l, err := Read(t.Context(), bytes.NewReader(imagetest.Tar(t,
		file{Name: "usr/lib/systemd/systemd", Body: "x"},
		file{Name: "lib", Type: tar.TypeSymlink, Link: "usr/lib"},
		file{Name: "sbin/init", Type: tar.TypeSymlink, Link: "../../../lib/systemd/systemd"},
		file{Name: "loop", Type: tar.TypeSymlink, Link: "loop"},
	)), Options{Image: erofs.NewWriter(tempFile(t)), Budget: NewBudget(1 << 20)})
	if err != nil {
		t.Fatal(err)
	}
	tree := NewTree()
	if err := tree.Apply(l); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"sbin/init": "/usr/lib/systemd/systemd", "/lib/systemd/systemd": "/usr/lib/systemd/systemd",
		"lib": "/usr/lib", "/": "/", "": "/", "loop": "", "absent": "", "no/such": "",
	} {
		if _, got := tree.Lookup(name); got != want {
			t.Errorf("%q leads to %q, want %q", name, got, want)
		}
	}
}

func tempFile(t testing.TB) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func FuzzMerge(f *testing.F) {
	f.Add(imagetest.Tar(f, file{Name: "d/a", Body: "1"}, file{Name: "l", Type: tar.TypeSymlink, Link: "d"}),
		imagetest.Tar(f, file{Name: "l/b"}, file{Name: "d/.wh.a"}, file{Name: "h", Type: tar.TypeLink, Link: "l/b"}))
	f.Add(imagetest.Tar(f, file{Name: "x/y/", Xattrs: map[string]string{"user.a": "b"}}),
		imagetest.Tar(f, file{Name: "x/.wh..wh..opq"}, file{Name: "x/n", Type: tar.TypeChar}))
	image := tempFile(f)
	f.Fuzz(func(t *testing.T, a, b []byte) {
		if err := image.Truncate(0); err != nil {
			t.Fatal(err)
		}
		if _, err := mergeTo(t, image, a, b); err != nil && !api.IsCode(err, api.CodeCorrupt) {
			t.Errorf("%v", err)
		}
	})
}

func FuzzCleanName(f *testing.F) {
	for _, s := range []string{"a/b", "./a", "/", "../x", "a/./b//c", ".wh.a", "d/.wh..wh..opq"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name, err := cleanName(s)
		if err != nil {
			return
		}
		for part := range strings.SplitSeq(name, "/") {
			if name != "" && (part == "" || part == "." || part == ".." || strings.Contains(part, "\x00") || len(part) > erofs.MaxName) {
				t.Errorf("%q gives %q", s, name)
			}
		}
		if again, err := cleanName(name); name != "" && (err != nil || again != name) {
			t.Errorf("%q gives %q gives %q, %v", s, name, again, err)
		}
		_, _, _ = whiteout(name)
	})
}
