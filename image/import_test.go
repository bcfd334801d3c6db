package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/ulikunitz/xz"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/image/imagetest"
	"github.com/cleave-project/cleave/image/manifest"
)

func label(v string) change {
	return func(c *v1.ConfigFile, _ *v1.Manifest) { c.Config.Labels = map[string]string{"l": v} }
}

func importBytes(t testing.TB, s *Store, b []byte, name string) (*api.Image, error) {
	t.Helper()
	return s.Import(t.Context(), bytes.NewReader(b), name, "", nil)
}

func TestImportTakesEveryCompression(t *testing.T) {
	s := openStore(t)
	plain := imagetest.Tar(t, file{Name: "./"}, file{Name: "./etc/os-release", Body: "ID=x\n"}, file{Name: "./.wh.kept", Body: "no whiteout"})
	var x bytes.Buffer
	w, err := xz.NewWriter(&x)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	digest := ""
	for name, b := range map[string][]byte{"tar": plain, "gz": pack(t, "gz", plain), "zst": pack(t, "zst", plain), "xz": x.Bytes()} {
		img, err := importBytes(t, s, b, "root:"+name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if digest != "" && img.Digest != digest {
			t.Errorf("%s: another digest for the same tree", name)
		}
		digest = img.Digest
	}
	if got := tree(t, s, digest); len(got) != 4 {
		t.Errorf("%q", got)
	}
}

func TestImportSeesWhetherARootIsASystem(t *testing.T) {
	s := openStore(t)
	for n, c := range []struct {
		files  []file
		system bool
		args   []string
	}{
		{[]file{{Name: "sbin/init", Type: tar.TypeSymlink, Link: "/lib/systemd/systemd"}, {Name: "lib/systemd/systemd"}, {Name: "bin/bash"}}, true, []string{"/sbin/init"}},
		{[]file{{Name: "sbin/init", Type: tar.TypeSymlink, Link: "/bin/busybox"}, {Name: "bin/busybox"}, {Name: "bin/sh"}}, false, []string{"/bin/sh"}},
		{[]file{{Name: "bin/bash"}}, false, []string{"/bin/bash"}},
	} {
		img, err := importBytes(t, s, imagetest.Tar(t, c.files...), fmt.Sprintf("sys:%d", n))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(c.args, append(img.Config.Entrypoint, img.Config.Cmd...)); d != "" || img.System != c.system {
			t.Errorf("%d: system %v %s", n, img.System, d)
		}
	}
}

func TestImportRefusesBadInput(t *testing.T) {
	s := openStore(t, func(o *Options) { o.MaxUnpacked = 4 * api.MiB })
	root := imagetest.Tar(t, file{Name: "a", Body: noise(10_000, 1)})
	packed := pack(t, "gz", root)
	for name, c := range map[string]struct {
		body []byte
		name string
		code api.Code
	}{
		"nothing":        {nil, "x", api.CodeInvalid},
		"an empty tar":   {imagetest.Tar(t), "x", api.CodeInvalid},
		"text":           {[]byte(strings.Repeat("hello ", 500)), "x", api.CodeCorrupt},
		"no name":        {root, "", api.CodeInvalid},
		"base":           {root, "base", api.CodeInvalid},
		"a bad name":     {root, "Not A Name", api.CodeInvalid},
		"cut off":        {packed[:len(packed)-20], "x", api.CodeCorrupt},
		"damaged":        {append(append([]byte{}, packed[:4000]...), make([]byte, 5000)...), "x", api.CodeCorrupt},
		"up and out":     {imagetest.Tar(t, file{Name: "../x"}), "x", api.CodeCorrupt},
		"a bomb":         {pack(t, "zst", imagetest.Tar(t, file{Name: "x", Body: strings.Repeat("\x00", 32<<20)})), "x", api.CodeCorrupt},
		"a huge header":  {imagetest.Tar(t, file{Name: "x", Size: 1 << 60}), "x", api.CodeCorrupt},
		"a broken index": {imagetest.Tar(t, file{Name: "oci-layout", Body: "{}"}, file{Name: "index.json", Body: "nonsense"}), "x", api.CodeCorrupt},
		"an empty index": {imagetest.Tar(t, file{Name: "oci-layout", Body: "{}"}, file{Name: "index.json", Body: "{}"}), "x", api.CodeInvalid},
		"missing blobs": {imagetest.Tar(t, file{Name: "oci-layout", Body: "{}"},
			file{Name: "index.json", Body: `{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":3,"digest":"sha256:` + strings.Repeat("a", 64) + `"}]}`}), "x", api.CodeCorrupt},
		"docker without parts": {imagetest.Tar(t, file{Name: "manifest.json", Body: `[{"Config":"../../etc/passwd","Layers":["x"]}]`}), "x", api.CodeCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := importBytes(t, s, c.body, c.name)
			wantError(t, err, c.code)
			checkNothingHalf(t, s)
		})
	}
	if l := names(t, s); len(l) != 0 {
		t.Errorf("%v", l)
	}
}

func TestImportOfARootThatHasAManifest(t *testing.T) {
	s := openStore(t)
	img, err := importBytes(t, s, imagetest.Tar(t, file{Name: "manifest.json", Body: `{"name":"an app"}`}, file{Name: "bin/sh"}), "app")
	if err != nil || len(tree(t, s, img.Digest)) != 4 {
		t.Errorf("%v, %v", img, err)
	}
}

// layout writes an OCI layout as a tar file.
func layout(t testing.TB, images map[string]string) []byte {
	t.Helper()
	var files []file
	add := func(mt types.MediaType, body []byte) v1.Descriptor {
		files = append(files, file{Name: blobPath(manifest.Digest(body)), Body: string(body)})
		return describe(t, body, mt)
	}
	index := v1.IndexManifest{SchemaVersion: 2}
	for name, text := range images {
		l := smallImage(t, text)[0]
		config := v1.ConfigFile{OS: "linux", Architecture: hostArch(t), RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{describe(t, l.tar, "").Digest}}}
		m := v1.Manifest{
			SchemaVersion: 2, MediaType: types.OCIManifestSchema1,
			Layers: []v1.Descriptor{add(types.OCILayer, l.packed)}, Config: add(types.OCIConfigJSON, asJSON(t, config)),
		}
		d := add(types.OCIManifestSchema1, asJSON(t, m))
		if name != "" {
			d.Annotations = map[string]string{annotationRef: name}
		}
		index.Manifests = append(index.Manifests, d)
	}
	files = append(files, file{Name: "oci-layout", Body: `{"imageLayoutVersion":"1.0.0"}`}, file{Name: "index.json", Body: string(asJSON(t, index))})
	return imagetest.Tar(t, files...)
}

func hostArch(t testing.TB) string {
	t.Helper()
	p, err := manifest.ParsePlatform("")
	if err != nil {
		t.Fatal(err)
	}
	return p.Architecture
}

func TestImportChoosesFromALayout(t *testing.T) {
	s := openStore(t)
	two := layout(t, map[string]string{"app:1": "one", "app:2": "two"})
	_, err := importBytes(t, s, two, "")
	wantError(t, err, api.CodeInvalid, "app:1", "app:2", "--name")
	_, err = importBytes(t, s, two, "other")
	wantError(t, err, api.CodeInvalid, "app:1")
	img, err := importBytes(t, s, pack(t, "zst", two), "app:2")
	if err != nil {
		t.Fatal(err)
	}
	if body, err := os.ReadFile(filepath.Join(imagetest.Mount(t, s.EROFS(img.Digest)), "etc/text")); err != nil || string(body) != "two" {
		t.Errorf("%q, %v", body, err)
	}
	if img, err = importBytes(t, s, layout(t, map[string]string{"reg.example.com/x:1": "x"}), ""); err != nil || img.Names[0] != "reg.example.com/x:1" {
		t.Errorf("%v, %v", img, err)
	}
	if img, err = importBytes(t, s, layout(t, map[string]string{"reg.example.com/x:1": "y"}), "renamed"); err != nil || img.Names[0] != "docker.io/library/renamed:latest" {
		t.Errorf("%v, %v", img, err)
	}
	for _, unnamed := range []string{"", "latest"} {
		_, err = importBytes(t, s, layout(t, map[string]string{unnamed: "z"}), "")
		wantError(t, err, api.CodeInvalid, "--name")
	}
}

func TestImportRefusesALayoutWithWrongDigests(t *testing.T) {
	s := openStore(t)
	good := layout(t, map[string]string{"app:1": "one"})
	r := tar.NewReader(bytes.NewReader(good))
	var files []file
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file{Name: h.Name, Body: string(body)})
	}
	for n := range files {
		if !strings.HasPrefix(files[n].Name, "blobs/") {
			continue
		}
		bad := append([]file{}, files...)
		bad[n].Body = strings.Replace(bad[n].Body, `"`, `" `, 1) + " "
		if _, ok := gzipMagic(bad[n].Body); ok {
			bad[n].Body = string(pack(t, "gz", imagetest.Tar(t, file{Name: "other"})))
		}
		_, err := importBytes(t, s, imagetest.Tar(t, bad...), "")
		wantError(t, err, api.CodeCorrupt)
	}
}

func gzipMagic(s string) (string, bool) { return strings.CutPrefix(s, "\x1f\x8b") }

func TestImportWhatOtherToolsWrite(t *testing.T) {
	if _, err := exec.LookPath("skopeo"); err != nil {
		t.Skip("needs skopeo")
	}
	r := newRegistry(t)
	p := r.push("x/everything:1", everything(t))
	s := openStore(t)
	want := tree(t, s, pull(t, s, p.ref).Digest)
	dir := t.TempDir()
	for _, format := range []string{"docker-archive", "oci-archive"} {
		path := filepath.Join(dir, format+".tar")
		out, err := exec.Command("skopeo", "copy", "-q", "--insecure-policy", "--src-tls-verify=false",
			"docker://"+p.ref, format+":"+path+":reg.example.com/y/z:"+format).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		img, err := s.Import(t.Context(), f, "", "", nil)
		if err != nil {
			t.Errorf("%s: %v", format, err)
			continue
		}
		if !slices.Contains(img.Names, "reg.example.com/y/z:"+format) {
			t.Errorf("%v", img.Names)
		}
		if d := cmp.Diff(want, tree(t, s, img.Digest)); d != "" {
			t.Errorf("%s: %s", format, d)
		}
	}
}

func TestExportComesBackTheSame(t *testing.T) {
	r := newRegistry(t)
	s := openStore(t)
	p := r.push("x/everything:1", everything(t), func(c *v1.ConfigFile, _ *v1.Manifest) {
		c.Config.Entrypoint = []string{"/bin/su"}
		c.History = []v1.History{{CreatedBy: "us"}}
	})
	img := pull(t, s, p.ref)
	want := tree(t, s, img.Digest)
	for format, name := range map[string]string{"oci": "", "tar": "from-tar"} {
		var b bytes.Buffer
		if err := s.Export(t.Context(), p.ref, format, &b); err != nil {
			t.Fatal(err)
		}
		other := openStore(t)
		back, err := importBytes(t, other, b.Bytes(), name)
		if err != nil {
			t.Errorf("%s: %v", format, err)
			continue
		}
		if d := cmp.Diff(want, tree(t, other, back.Digest)); d != "" {
			t.Errorf("%s: %s", format, d)
		}
		if format == "oci" {
			if d := cmp.Diff(img.Config, back.Config); d != "" || back.Names[0] != p.ref {
				t.Errorf("%s %v", d, back.Names)
			}
		}
	}
	wantError(t, s.Export(t.Context(), p.ref, "zip", io.Discard), api.CodeInvalid)
	wantError(t, s.Export(t.Context(), "absent", "tar", io.Discard), api.CodeNotFound)
	checkNothingHalf(t, s)
}

func TestExportIsReadByOtherTools(t *testing.T) {
	if _, err := exec.LookPath("skopeo"); err != nil {
		t.Skip("needs skopeo")
	}
	s := openStore(t)
	importRoot(t, s, "reg.example.com/a:1", "x")
	path := filepath.Join(t.TempDir(), "a.tar")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := s.Export(t.Context(), "reg.example.com/a:1", "oci", f); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("skopeo", "inspect", "oci-archive:"+path).Output()
	if err != nil {
		t.Fatal(err)
	}
	var got struct{ Architecture, Os string }
	if err := json.Unmarshal(out, &got); err != nil || got.Os != "linux" {
		t.Errorf("%s, %v", out, err)
	}
}
