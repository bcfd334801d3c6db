package guest

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestEntryName(t *testing.T) {
	for name, want := range map[string]string{
		"a": "a", "a/b/": "a/b", "./a": "a", "/a//b": "a/b", "": ".", ".": ".", "/": ".", "./": ".", "..a": "..a", "a..": "a..",
		"..": "", "../a": "", "a/..": "", "a/../b": "", "/..": "", "./../x": "",
	} {
		got, err := entryName(name)
		if (err == nil) != (want != "") || err == nil && got != want {
			t.Errorf("%q: %q, %v", name, got, err)
		}
	}
}

// Whatever a stream says, nothing outside of the target is touched.
func FuzzExtract(f *testing.F) {
	add := func(headers ...tar.Header) {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range headers {
			w.WriteHeader(&h)
		}
		w.Close()
		f.Add(b.Bytes())
	}
	add(tar.Header{Name: "a/b", Typeflag: tar.TypeReg, Mode: 0o644})
	add(tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../out"}, tar.Header{Name: "l/f", Typeflag: tar.TypeReg})
	add(tar.Header{Name: "d", Typeflag: tar.TypeDir}, tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "../out/victim"})
	add(tar.Header{Name: "p", Typeflag: tar.TypeFifo}, tar.Header{Name: "c", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3})
	add(tar.Header{Name: "x", Typeflag: tar.TypeReg, Format: tar.FormatPAX, PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}})
	f.Fuzz(func(t *testing.T, in []byte) {
		top := t.TempDir()
		for _, dir := range []string{"in", "out"} {
			os.Mkdir(filepath.Join(top, dir), 0o755)
		}
		os.WriteFile(top+"/out/victim", []byte("victim"), 0o600)
		x, err := newExtractor(top + "/in")
		if err != nil {
			t.Fatal(err)
		}
		defer x.close()
		x.extract(tar.NewReader(bytes.NewReader(in)))
		outside, _ := filepath.Glob(top + "/*")
		more, _ := filepath.Glob(top + "/out/*")
		got := strings.Join(append(outside, more...), " ")
		if want := strings.ReplaceAll("T/in T/out T/out/victim", "T", top); got != want {
			t.Errorf("there is %s", got)
		}
		if b, err := os.ReadFile(top + "/out/victim"); err != nil || string(b) != "victim" {
			t.Errorf("the victim holds %q, %v", b, err)
		}
	})
}
