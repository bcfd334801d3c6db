package transfer

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/google/go-cmp/cmp"
)

// entry is a line of a test's archive: "d dir", "f file content",
// "l link -> target", "h hardlink -> target", "c device".
func archive(t testing.TB, lines ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, line := range lines {
		kind, rest, _ := strings.Cut(line, " ")
		name, value, _ := strings.Cut(rest, " ")
		h := &tar.Header{Name: name, Mode: 0o6755, ModTime: time.Unix(1e9, 0)}
		value = strings.TrimPrefix(value, "-> ")
		switch kind {
		case "d":
			h.Typeflag = tar.TypeDir
		case "f":
			h.Typeflag, h.Size = tar.TypeReg, int64(len(value))
		case "l":
			h.Typeflag, h.Linkname = tar.TypeSymlink, value
		case "h":
			h.Typeflag, h.Linkname = tar.TypeLink, value
		case "c":
			h.Typeflag = tar.TypeChar
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if kind == "f" {
			io.WriteString(w, value)
		}
	}
	w.Close()
	return b.Bytes()
}

// tree lists what is below dir.
func tree(t testing.TB, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		fi, err := os.Lstat(p)
		if err != nil {
			return err
		}
		switch {
		case rel == ".":
		case fi.Mode()&fs.ModeSymlink != 0:
			target, _ := os.Readlink(p)
			out = append(out, rel+" -> "+target)
		case fi.IsDir():
			out = append(out, fmt.Sprintf("%s/ %v", rel, fi.Mode().Perm()))
		default:
			b, _ := os.ReadFile(p)
			out = append(out, fmt.Sprintf("%s=%s %v", rel, b, fi.Mode()))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestUnpackCopies(t *testing.T) {
	for _, tt := range []struct {
		name    string
		top, to string
		before  []string // directories and files that are there
		archive []string
		want    []string
		left    []string
	}{
		{name: "a file", top: "hosts", to: "hosts", archive: []string{"f hosts x"}, want: []string{"hosts=x -rwxr-xr-x"}},
		{name: "a file under another name", top: "hosts", to: "copy", archive: []string{"f hosts x"}, want: []string{"copy=x -rwxr-xr-x"}},
		{name: "a file over a file", top: "a", to: "a", before: []string{"a=old"}, archive: []string{"f a new"}, want: []string{"a=new -rwxr-xr-x"}},
		{name: "a symbolic link as it is", top: "a", to: "a", archive: []string{"l a -> /etc/passwd"}, want: []string{"a -> /etc/passwd"}},
		{
			name: "a directory", top: "d", to: "e", archive: []string{"d d/", "f d/x 1", "d d/s", "f d/s/y 2", "l d/s/up -> ../../..", "h d/z -> d/x"},
			want: []string{"e/ -rwxr-xr-x", "e/s/ -rwxr-xr-x", "e/s/up -> ../../..", "e/s/y=2 -rwxr-xr-x", "e/x=1 -rwxr-xr-x", "e/z=1 -rwxr-xr-x"},
		},
		{
			name: "contents", top: ".", to: ".", before: []string{"keep=1"}, archive: []string{"d ./", "f ./x 1", "d s", "f s/y 2"},
			want: []string{"keep=1 -rw-------", "s/ -rwxr-xr-x", "s/y=2 -rwxr-xr-x", "x=1 -rwxr-xr-x"},
		},
		{
			name: "into a directory that is there and keeps its mode", top: "d", to: "d", before: []string{"d/old=1"}, archive: []string{"d d", "f d/new 2"},
			want: []string{"d/ -rwx------", "d/new=2 -rwxr-xr-x", "d/old=1 -rw-------"},
		},
		{name: "without devices", top: "d", to: "d", archive: []string{"d d", "c d/null", "f d/x 1"}, want: []string{"d/ -rwxr-xr-x", "d/x=1 -rwxr-xr-x"}, left: []string{"null"}},
		{name: "a link over itself", top: "d", to: "d", archive: []string{"d d", "f d/x 1", "h d/x -> d/x"}, want: []string{"d/ -rwxr-xr-x", "d/x=1 -rwxr-xr-x"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			prepare(t, dir, tt.before)
			left, err := Unpack(bytes.NewReader(archive(t, tt.archive...)), tt.top, Target{Dir: dir, Name: tt.to})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, tree(t, dir)); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(tt.left, left); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func prepare(t testing.TB, dir string, files []string) {
	t.Helper()
	for _, f := range files {
		name, content, _ := strings.Cut(f, "=")
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(content, "-> "); ok {
			err = os.Symlink(target, p)
		} else {
			err = os.WriteFile(p, []byte(content), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestUnpackRefusesAttacks(t *testing.T) {
	for _, tt := range []struct {
		name    string
		top     string
		before  []string
		archive []string
		want    string
	}{
		{name: "dot-dot", top: "d", archive: []string{"d d", "f d/../../victim evil"}, want: "leads out"},
		{name: "an absolute name", top: "d", archive: []string{"d d", "f /victim evil"}, want: "no relative name"},
		{name: "a sibling", top: "d", archive: []string{"d d", "f victim evil"}, want: "not below"},
		{name: "a name that only begins alike", top: "d", archive: []string{"d d", "f dd/victim evil"}, want: "not below"},
		{name: "through a planted symbolic link out", top: "d", archive: []string{"d d", "l d/l -> ../..", "f d/l/victim evil"}, want: "no directory"},
		{name: "through a planted absolute link", top: "d", archive: []string{"d d", "l d/l -> /", "f d/l/victim evil"}, want: "no directory"},
		{name: "through a planted link inside", top: "d", archive: []string{"d d", "d d/s", "l d/l -> s", "f d/l/x evil"}, want: "no directory"},
		{name: "a directory over a planted link", top: "d", archive: []string{"d d", "l d/l -> /", "d d/l", "f d/l/victim evil"}, want: "no directory here"},
		{name: "a top that is a symbolic link here", top: "d", before: []string{"d=-> ."}, archive: []string{"d d", "f d/victim evil"}, want: "no directory here"},
		{name: "a hard link out", top: "d", archive: []string{"d d", "h d/h -> ../victim"}, want: "leads out"},
		{name: "an absolute hard link", top: "d", archive: []string{"d d", "h d/h -> /etc/passwd"}, want: "no relative name"},
		{name: "a hard link through a symbolic one", top: "d", archive: []string{"d d", "l d/l -> ..", "h d/h -> d/l/victim"}, want: "no directory"},
		{name: "a hard link as the copy itself", top: "a", before: []string{"x=1"}, archive: []string{"h a -> a/x"}, want: "link to nothing"},
		{name: "more after a file", top: "a", archive: []string{"f a 1", "f a/b 2"}, want: "after a file"},
		{name: "the same file twice", top: "a", archive: []string{"f a 1", "f a 2"}, want: "after a file"},
		{name: "a file before its directory", top: "d", archive: []string{"f d/x 1"}, want: "before what it is in"},
		{name: "a file below a file", top: "d", archive: []string{"d d", "f d/x 1", "f d/x/y 2"}, want: "no directory"},
		{name: "a directory over a file", top: "d", before: []string{"d/x=1"}, archive: []string{"d d", "d d/x"}, want: "no directory here"},
		{name: "a file over a directory", top: "d", before: []string{"d/x/y=1"}, archive: []string{"d d", "f d/x 1"}, want: "x"},
		{name: "nothing", top: "d", archive: nil, want: "empty archive"},
		{name: "dot-dot below the contents", top: ".", archive: []string{"d .", "f ../victim evil"}, want: "leads out"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			outer := t.TempDir()
			dir := filepath.Join(outer, "deep", "here")
			prepare(t, dir, append(tt.before, "safe=1"))
			prepare(t, outer, []string{"deep/victim=good", "victim=good"})
			name := tt.top
			_, err := Unpack(bytes.NewReader(archive(t, tt.archive...)), tt.top, Target{Dir: dir, Name: name})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
			for _, line := range tree(t, outer) {
				if strings.Contains(line, "evil") {
					t.Errorf("written: %s", line)
				}
				if strings.Contains(line, ".cleave-") {
					t.Errorf("left behind: %s", line)
				}
			}
		})
	}
}

func TestUnpackOfATornArchiveLeavesNoHalfFile(t *testing.T) {
	dir := t.TempDir()
	prepare(t, dir, []string{"d/x=old"})
	whole := archive(t, "d d", "f d/x "+strings.Repeat("n", 4096))
	if _, err := Unpack(bytes.NewReader(whole[:2048]), "d", Target{Dir: dir, Name: "d"}); err == nil {
		t.Fatal("a torn archive is no error")
	}
	if diff := cmp.Diff([]string{"d/ -rwx------", "d/x=old -rw-------"}, tree(t, dir)); diff != "" {
		t.Error(diff)
	}
}

func TestPackThenUnpackGivesTheSameTree(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	prepare(t, from, []string{"a=1", "s/b=two", "s/l=-> ../a", "s/t/c=3"})
	if err := os.Link(filepath.Join(from, "a"), filepath.Join(from, "s/h")); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if left, err := Pack(&b, from, "top", false); err != nil || left != nil {
		t.Fatal(left, err)
	}
	var renamed bytes.Buffer
	if err := Rename(&renamed, &b, "top", "other"); err != nil {
		t.Fatal(err)
	}
	if _, err := Unpack(&renamed, "other", Target{Dir: to, Name: "copy"}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(tree(t, from), tree(t, filepath.Join(to, "copy"))); diff != "" {
		t.Error(diff)
	}
	a, _ := os.Stat(filepath.Join(to, "copy/a"))
	h, _ := os.Stat(filepath.Join(to, "copy/s/h"))
	if !os.SameFile(a, h) {
		t.Error("a hard link became a copy")
	}
}

func TestRenameRefusesWhatLeadsOut(t *testing.T) {
	for _, lines := range [][]string{{"d d", "f d/../x 1"}, {"d d", "h d/x -> e/y"}, {"f e 1"}} {
		if err := Rename(io.Discard, bytes.NewReader(archive(t, lines...)), "d", "n"); !api.IsCode(err, api.CodeCorrupt) {
			t.Errorf("%v: %v", lines, err)
		}
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add(archive(f, "d d", "f d/x 1", "l d/l -> ..", "h d/h -> d/x", "c d/c"))
	f.Add(archive(f, "d d", "l d/l -> ../../..", "f d/l/victim 1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		outer := t.TempDir()
		dir := filepath.Join(outer, "in")
		prepare(t, dir, []string{"mine=1"})
		_, _ = Unpack(bytes.NewReader(b), "d", Target{Dir: dir, Name: "d"})
		names := func(dir string) (out []string) {
			list, _ := os.ReadDir(dir)
			for _, e := range list {
				out = append(out, e.Name())
			}
			return out
		}
		if diff := cmp.Diff([]string{"in"}, names(outer)); diff != "" {
			t.Fatal(diff)
		}
		for _, n := range names(dir) {
			if n != "mine" && n != "d" {
				t.Fatalf("%q appeared", n)
			}
		}
	})
}

func BenchmarkUnpackLargeFile(b *testing.B) {
	const size = 256 << 20
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	w.WriteHeader(&tar.Header{Name: "f", Typeflag: tar.TypeReg, Size: size, Mode: 0o644})
	w.Write(make([]byte, size))
	w.Close()
	b.SetBytes(size)
	for b.Loop() {
		if _, err := Unpack(bytes.NewReader(buf.Bytes()), "f", Target{Dir: b.TempDir(), Name: "f"}); err != nil {
			b.Fatal(err)
		}
	}
}
