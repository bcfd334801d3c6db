package image

import (
	"archive/tar"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/image/imagetest"
)

// capability is cap_net_raw+ep as the kernel keeps it (VFS_CAP_REVISION_2).
const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// everything is an image that uses all that layers have.
func everything(t testing.TB) []layer {
	long := strings.Repeat("long-name-", 12)
	first := []file{
		{Name: "./"}, {Name: "./etc/"}, {Name: "./usr/", Mode: 0o711}, {Name: "./usr/lib/"}, {Name: "./usr/bin/"},
		{Name: "./lib", Type: tar.TypeSymlink, Link: "usr/lib"},
		{Name: "./bin", Type: tar.TypeSymlink, Link: "/usr/bin"},
		{Name: "./etc/passwd", Body: "root:x:0:0::/root:/bin/sh\n"},
		{Name: "./etc/gone", Body: "goes"}, {Name: "./etc/conf.d/"}, {Name: "./etc/conf.d/a", Body: "a"}, {Name: "./etc/conf.d/sub/b", Body: "b"},
		{Name: "./usr/bin/ping", Mode: 0o755, Body: noise(5000, 1), Xattrs: map[string]string{"security.capability": capability, "user.note": "x"}},
		{Name: "./usr/bin/su", Mode: 0o4755, Body: noise(70_000, 2)},
		{Name: "./usr/bin/wall", Mode: 0o2755, GID: 5, Body: "wall"},
		{Name: "./tmp/", Mode: 0o1777},
		{Name: "./usr/lib/libc.so.6", Type: tar.TypeSymlink, Link: "libc-2.36.so"},
		{Name: "./usr/lib/libc-2.36.so", Body: noise(300_000, 3)},
		{Name: "./home/", UID: 1000, GID: 1000, Time: time.Unix(1, 1)},
		{Name: "./home/" + long + "/" + long, UID: 1000, GID: 1000, Body: "deep"},
		{Name: "./run/fifo", Type: tar.TypeFifo, Mode: 0o600},
		{Name: "./empty"},
		{Name: "./old-dir/x", Body: "x"},
		{Name: "./old-file", Body: "f"},
		{Name: "./links/a", Body: "linked"}, {Name: "./links/b", Type: tar.TypeLink, Link: "./links/a"}, {Name: "./links/c", Type: tar.TypeLink, Link: "./links/a"},
		{Name: "./kept/low", Body: "low"}, {Name: "./usr/share/gone/x", Body: "x"},
	}
	for i := range 500 {
		first = append(first, file{Name: fmt.Sprintf("./usr/share/many/file-%04d", i), Body: strings.Repeat("z", i*17)})
	}
	second := []file{
		{Name: "etc/"}, {Name: "etc/.wh.gone"}, {Name: "etc/conf.d/"}, {Name: "etc/conf.d/.wh..wh..opq"}, {Name: "etc/conf.d/c", Body: "c"},
		{Name: "lib/libnew.so", Body: "through a link"},
		{Name: "links/"}, {Name: "links/.wh.b"}, {Name: "links/d", Type: tar.TypeLink, Link: "links/a"},
		{Name: "old-dir", Body: "now a file"},
		{Name: "old-file/"}, {Name: "old-file/now", Body: "a directory"},
		{Name: "usr/bin/su", Mode: 0o755, Body: "no longer"},
		{Name: "usr/share/"}, {Name: "usr/share/.wh.gone"}, {Name: "usr/share/many/.wh.file-0007"},
	}
	third := []file{
		{Name: "usr/share/"}, {Name: "usr/share/gone/"}, {Name: "usr/share/gone/again", Body: "again"},
		{Name: "kept/"}, {Name: "kept/high", Body: "high"},
		{Name: "home/", UID: 1001, GID: 1001, Mode: 0o750, Xattrs: map[string]string{"user.dir": "1"}},
	}
	empty := gzipped(t, imagetest.Tar(t))
	return []layer{gzipped(t, imagetest.Tar(t, first...)), empty, gzipped(t, imagetest.Tar(t, second...)), empty, gzipped(t, imagetest.Tar(t, third...))}
}

func TestPullEqualsWhatUmociUnpacks(t *testing.T) {
	for _, tool := range []string{"skopeo", "umoci"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("comparing needs ", tool)
		}
	}
	r := newRegistry(t)
	p := r.push("x/everything:1", everything(t))
	s := openStore(t)
	img := pull(t, s, p.ref)

	dir := t.TempDir()
	for _, args := range [][]string{
		{"skopeo", "copy", "-q", "--insecure-policy", "--src-tls-verify=false", "docker://" + p.ref, "oci:" + dir + "/oci:1"},
		{"umoci", "unpack", "--image", dir + "/oci:1", dir + "/bundle"},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	// Tools differ in the times of directories that layers only imply, or
	// whose content they changed.
	o := imagetest.Options{NoTimes: true}
	want := imagetest.List(t, dir+"/bundle/rootfs", o)
	got := imagetest.List(t, imagetest.Mount(t, s.EROFS(img.Digest)), o)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("umoci (-) and we (+) differ:\n%s", d)
	}
	if len(got) < 500 {
		t.Errorf("only %d files", len(got))
	}
}

func TestPullTakesEveryCompression(t *testing.T) {
	r := newRegistry(t)
	s := openStore(t)
	body := imagetest.Tar(t, file{Name: "a", Body: noise(100_000, 7)})
	var trees [][]string
	for tag, l := range map[string]layer{
		"gz":  gzipped(t, body),
		"zst": {body, pack(t, "zst", body), types.OCILayerZStd},
		"tar": {body, body, types.OCIUncompressedLayer},
		"old": {body, pack(t, "gz", body), types.DockerLayer},
	} {
		img := pull(t, s, r.push("c:"+tag, []layer{l}).ref)
		trees = append(trees, tree(t, s, img.Digest))
	}
	for _, other := range trees[1:] {
		if d := cmp.Diff(trees[0], other); d != "" {
			t.Error(d)
		}
	}
	if roots, _ := os.ReadDir(s.dir(dirRoots)); len(roots) != 1 {
		t.Errorf("%d roots for one tree", len(roots))
	}
}

func TestPullReportsProgress(t *testing.T) {
	r := newRegistry(t)
	s := openStore(t)
	p := r.push("p:1", []layer{gzipped(t, imagetest.Tar(t, file{Name: "a", Body: noise(2<<20, 1)}))})
	var mu sync.Mutex
	var steps []string
	last, total := int64(0), int64(0)
	_, err := s.Pull(t.Context(), api.ImagePull{Reference: p.ref}, func(step string, done, all int64) {
		mu.Lock()
		defer mu.Unlock()
		if !slices.Contains(steps, step) {
			steps = append(steps, step)
		}
		if step == "downloading" {
			last, total = max(last, done), all
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"resolving", "downloading", "merging"}, steps); d != "" {
		t.Error(d)
	}
	if last != p.layers[0].Size || total != last {
		t.Errorf("%d of %d bytes; the layer has %d", last, total, p.layers[0].Size)
	}
}

func TestPullTakesOverTheConfiguration(t *testing.T) {
	r := newRegistry(t)
	s := openStore(t)
	p := r.push("cfg:1", smallImage(t, "x"), func(c *v1.ConfigFile, _ *v1.Manifest) {
		c.Config = v1.Config{
			Entrypoint: []string{"/lib/systemd/systemd"}, Cmd: []string{"--x"}, Env: []string{"A=1"}, User: "app:app", WorkingDir: "/srv",
			StopSignal: "SIGRTMIN+3", Volumes: map[string]struct{}{"/data": {}}, ExposedPorts: map[string]struct{}{"80/tcp": {}, "53/udp": {}},
			Labels: map[string]string{"l": "v"},
			Healthcheck: &v1.HealthConfig{Test: []string{"CMD-SHELL", "curl -f localhost"}, Interval: 1500 * time.Millisecond,
				Timeout: 3 * time.Second, StartPeriod: time.Minute, Retries: 5},
		}
	})
	img := pull(t, s, p.ref)
	want := api.Image{
		Digest: p.digest, Names: []string{p.ref}, Size: img.Size, Created: img.Created, Platform: "linux/" + runtime.GOARCH,
		Source: p.ref, System: true,
		Config: api.ImageConfig{
			Entrypoint: []string{"/lib/systemd/systemd"}, Cmd: []string{"--x"}, Env: []string{"A=1"}, User: "app:app", WorkDir: "/srv",
			StopSignal: "SIGRTMIN+3", Volumes: []string{"/data"}, ExposedPorts: []string{"53/udp", "80/tcp"}, Labels: map[string]string{"l": "v"},
			Health: &api.HealthCheck{Command: []string{"/bin/sh", "-c", "curl -f localhost"}, IntervalSeconds: 2, TimeoutSeconds: 3, StartSeconds: 60, Retries: 5},
		},
	}
	if d := cmp.Diff(want, *img); d != "" {
		t.Error(d)
	}
}

func TestPullFindsSystemImages(t *testing.T) {
	r := newRegistry(t)
	s := openStore(t)
	root := []layer{gzipped(t, imagetest.Tar(t,
		file{Name: "sbin/init", Type: tar.TypeSymlink, Link: "../lib/systemd/systemd"}, file{Name: "lib/systemd/systemd", Mode: 0o755},
		file{Name: "start", Type: tar.TypeSymlink, Link: "/sbin/init"}, file{Name: "bin/app"}))}
	for n, c := range []struct {
		args []string
		want bool
	}{
		{[]string{"/sbin/init"}, true}, {[]string{"/init"}, true}, {[]string{"systemd"}, true}, {[]string{"/start"}, true},
		{[]string{"/usr/bin/dinit"}, true}, {[]string{"/bin/app"}, false}, {[]string{"sh", "-c", "/sbin/init"}, false}, {nil, false},
	} {
		p := r.push(numbered("sys:%d", n), root, func(cf *v1.ConfigFile, _ *v1.Manifest) { cf.Config.Cmd = c.args })
		if img := pull(t, s, p.ref); img.System != c.want {
			t.Errorf("%q: system is %v", c.args, img.System)
		}
	}
}

func TestPullChoosesThePlatform(t *testing.T) {
	r := newRegistry(t)
	s := openStore(t)
	var entries []v1.Descriptor
	for n, p := range []string{"linux/amd64", "linux/arm64/v8", "linux/arm/v6", "linux/arm/v7", "windows/amd64"} {
		parts := strings.Split(p+"/", "/")
		entries = append(entries, r.push(numbered("multi:p%d", n), smallImage(t, p), func(c *v1.ConfigFile, _ *v1.Manifest) {
			c.OS, c.Architecture, c.Variant = parts[0], parts[1], parts[2]
		}).desc)
	}
	attestation := entries[0]
	attestation.Platform = &v1.Platform{OS: "unknown", Architecture: "unknown"}
	ref := r.index("multi:all", append(entries, attestation)...)
	for platform, want := range map[string]int{
		"linux/amd64": 0, "linux/x86_64": 0, "linux/arm64": 1, "linux/arm64/v8": 1, "linux/arm/v6": 2, "linux/arm/v7": 3, "linux/arm": 3,
	} {
		img, err := s.Pull(t.Context(), api.ImagePull{Reference: ref, Platform: platform}, nil)
		if err != nil || img.Digest != entries[want].Digest.String() {
			t.Errorf("%s: %v, %v", platform, img, err)
		}
	}
	_, err := s.Pull(t.Context(), api.ImagePull{Reference: ref, Platform: "linux/riscv64"}, nil)
	wantError(t, err, api.CodeNotFound, "linux/riscv64", "linux/amd64", "linux/arm/v7", "windows/amd64")
	if strings.Contains(err.Error(), "unknown") {
		t.Errorf("%q lists attestations", err)
	}
	_, err = s.Pull(t.Context(), api.ImagePull{Reference: r.host + "/multi:p2"}, nil)
	wantError(t, err, api.CodeNotFound, "linux/arm/v6")
	_, err = s.Pull(t.Context(), api.ImagePull{Reference: ref, Platform: "nonsense"}, nil)
	wantError(t, err, api.CodeInvalid, "nonsense")
}

func TestPullByDigest(t *testing.T) {
	r := newRegistry(t)
	s := openStore(t)
	p := r.push("d:1", smallImage(t, "x"))
	byDigest := r.host + "/d@" + p.digest
	img := pull(t, s, byDigest)
	if img.Digest != p.digest || !slices.Contains(img.Names, byDigest) {
		t.Errorf("%+v", img)
	}
	for _, ref := range []string{byDigest, p.digest, p.digest[:20], p.digest[7:13], r.host + "/d:1@" + p.digest} {
		if got, err := s.Get(t.Context(), ref); err != nil || got.Digest != p.digest {
			t.Errorf("%s: %v, %v", ref, got, err)
		}
	}
	_, err := s.Get(t.Context(), r.host+"/d:1")
	wantError(t, err, api.CodeNotFound, "cleave image pull "+r.host+"/d:1")
}

func TestPullExplainsWhatIsNotThere(t *testing.T) {
	r := newRegistry(t)
	s := openStore(t)
	r.push("there:1", smallImage(t, "x"))
	for _, c := range []struct {
		ref   string
		code  api.Code
		words []string
	}{
		{r.host + "/there:2", api.CodeNotFound, []string{"there:2", "check the name and the tag"}},
		{r.host + "/absent:1", api.CodeNotFound, []string{"absent"}},
		{r.host + "/there@sha256:" + strings.Repeat("0", 64), api.CodeNotFound, nil},
		{"127.0.0.1:1/x", api.CodeUnavailable, []string{"127.0.0.1:1", "refused"}},
		{"Bad Name", api.CodeInvalid, nil},
	} {
		_, err := s.Pull(t.Context(), api.ImagePull{Reference: c.ref}, nil)
		wantError(t, err, c.code, c.words...)
	}
	if l, _ := s.List(t.Context()); len(l) != 0 {
		t.Errorf("%v", l)
	}
	checkNothingHalf(t, s)
}

func TestPullRefusesWhatIsNoImage(t *testing.T) {
	r := newRegistry(t)
	s := openStore(t)
	mediaType := func(mt types.MediaType) change {
		return func(_ *v1.ConfigFile, m *v1.Manifest) { m.Layers[0].MediaType = mt }
	}
	for tag, c := range map[string]struct {
		change change
		code   api.Code
		word   string
	}{
		"artifact": {func(_ *v1.ConfigFile, m *v1.Manifest) {
			m.Config.MediaType = "application/vnd.cncf.helm.config.v1+json"
		}, api.CodeUnsupported, "helm"},
		"foreign":   {mediaType(types.DockerForeignLayer), api.CodeUnsupported, "distributed"},
		"unknown":   {mediaType("application/x-strange"), api.CodeUnsupported, "strange"},
		"encrypted": {mediaType("application/vnd.oci.image.layer.v1.tar+gzip+encrypted"), api.CodeUnsupported, "encrypted"},
		"too-few":   {func(c *v1.ConfigFile, _ *v1.Manifest) { c.RootFS.DiffIDs = nil }, api.CodeCorrupt, "0"},
		"negative":  {func(_ *v1.ConfigFile, m *v1.Manifest) { m.Layers[0].Size = -1 }, api.CodeCorrupt, "-1"},
	} {
		p := r.push("no:"+tag, smallImage(t, tag), c.change)
		_, err := s.Pull(t.Context(), api.ImagePull{Reference: p.ref}, nil)
		wantError(t, err, c.code, c.word)
	}
	for name, c := range map[string]struct{ body, mt, word string }{
		"both":     {`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[],"config":{},"layers":[]}`, "application/vnd.oci.image.index.v1+json", "both"},
		"confused": {`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`, "application/vnd.oci.image.manifest.v1+json", "sent as"},
		"schema1":  {`{"schemaVersion":1,"name":"x","fsLayers":[]}`, "application/vnd.docker.distribution.manifest.v1+json", "schema 1"},
		"empty":    {`{}`, "application/vnd.oci.image.manifest.v1+json", "no configuration"},
		"text":     {`hello`, "application/vnd.oci.image.manifest.v1+json", "JSON"},
	} {
		r.setFault(func(w http.ResponseWriter, req *http.Request) bool {
			if !strings.Contains(req.URL.Path, "/manifests/") {
				return false
			}
			w.Header().Set("Content-Type", c.mt)
			fmt.Fprint(w, c.body)
			return true
		})
		_, err := s.Pull(t.Context(), api.ImagePull{Reference: r.host + "/x:" + name}, nil)
		if err == nil || !strings.Contains(err.Error(), c.word) {
			t.Errorf("%s: %v", name, err)
		}
	}
	checkNothingHalf(t, s)
}

func TestPullRefusesWrongDigests(t *testing.T) {
	r := newRegistry(t)
	s := openStore(t)
	p := r.push("w:1", []layer{gzipped(t, imagetest.Tar(t, file{Name: "a", Body: noise(200_000, 1)}))})
	other := pack(t, "gz", imagetest.Tar(t, file{Name: "a", Body: noise(200_000, 2)}))
	answer := func(part string, body []byte) {
		r.setFault(func(w http.ResponseWriter, req *http.Request) bool {
			if !strings.Contains(req.URL.Path, part) {
				return false
			}
			w.Header().Set("Content-Type", string(types.OCIManifestSchema1))
			_, _ = w.Write(body)
			return true
		})
	}
	same := append(other[:0:0], other...)
	answer(p.layers[0].Digest.String(), same[:min(len(same), int(p.layers[0].Size))])
	_, err := s.Pull(t.Context(), api.ImagePull{Reference: p.ref}, nil)
	wantError(t, err, api.CodeCorrupt, "layer")

	answer("/manifests/", []byte(`{"schemaVersion":2}`))
	_, err = s.Pull(t.Context(), api.ImagePull{Reference: r.host + "/w@" + p.digest}, nil)
	wantError(t, err, api.CodeCorrupt, "digest")

	r.setFault(nil)
	q := r.push("w:2", smallImage(t, "x"), func(c *v1.ConfigFile, _ *v1.Manifest) { c.RootFS.DiffIDs[0].Hex = strings.Repeat("0", 64) })
	_, err = s.Pull(t.Context(), api.ImagePull{Reference: q.ref}, nil)
	wantError(t, err, api.CodeCorrupt, "unpacks to")

	if l, _ := s.List(t.Context()); len(l) != 0 {
		t.Errorf("%v", l)
	}
	checkNothingHalf(t, s)
	pull(t, s, p.ref)
}

// breakOff answers requests for a blob with n bytes at most, then closes the
// connection.
func breakOff(r *testRegistry, digest string, body []byte, n int, ranges bool) {
	r.setFault(func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.HasSuffix(req.URL.Path, digest) || req.Method != http.MethodGet {
			return false
		}
		from := 0
		if h := req.Header.Get("Range"); h != "" && ranges {
			_, _ = fmt.Sscanf(h, "bytes=%d-", &from)
			if from >= len(body) {
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				return true
			}
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(body)-1, len(body)))
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(body)-from))
		if from > 0 {
			w.WriteHeader(http.StatusPartialContent)
		}
		end := min(from+n, len(body))
		if !ranges {
			end = min(n, len(body))
			n += n // so that it gets there at last
		}
		_, _ = w.Write(body[from:end])
		return true
	})
}

func TestPullGoesOnWhereADownloadBroke(t *testing.T) {
	for _, ranges := range []bool{true, false} {
		r := newRegistry(t)
		s := openStore(t)
		l := gzipped(t, imagetest.Tar(t, file{Name: "a", Body: noise(1<<20, 1)}))
		p := r.push("b:1", []layer{l})
		breakOff(r, p.layers[0].Digest.String(), l.packed, 300_000, ranges)
		pull(t, s, p.ref)
		if n := r.fetches(p.layers[0].Digest.String()); n < 3 || n > 5 {
			t.Errorf("ranges %v: %d requests", ranges, n)
		}
	}
}

func TestPullGivesUpOnTruncatedLayers(t *testing.T) {
	r := newRegistry(t)
	s := openStore(t)
	l := gzipped(t, imagetest.Tar(t, file{Name: "a", Body: noise(1<<20, 1)}))
	p := r.push("t:1", []layer{l})
	digest := p.layers[0].Digest.String()

	breakOff(r, digest, l.packed[:500_000], 1<<30, true) // the registry itself has no more
	_, err := s.Pull(t.Context(), api.ImagePull{Reference: p.ref}, nil)
	wantError(t, err, api.CodeCorrupt, "only 500000 of")
	checkNothingHalf(t, s)

	r.setFault(func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.HasSuffix(req.URL.Path, digest) {
			return false
		}
		panic(http.ErrAbortHandler) // nothing comes through
	})
	_, err = s.Pull(t.Context(), api.ImagePull{Reference: p.ref}, nil)
	wantError(t, err, api.CodeUnavailable, r.host)
	checkNothingHalf(t, s)
}

func TestPullRetriesABusyRegistry(t *testing.T) {
	r := newRegistry(t)
	s := openStore(t)
	p := r.push("busy:1", smallImage(t, "x"))
	var n atomic.Int32
	r.setFault(func(w http.ResponseWriter, _ *http.Request) bool {
		if n.Add(1)%2 == 0 {
			return false
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	})
	pull(t, s, p.ref)
}

func TestPullKeepsVerifiedLayersForTheNextTry(t *testing.T) {
	r := newRegistry(t)
	s := openStore(t)
	p := r.push("k:1", []layer{
		gzipped(t, imagetest.Tar(t, file{Name: "a", Body: noise(100_000, 1)})),
		gzipped(t, imagetest.Tar(t, file{Name: "b", Body: noise(100_000, 2)})),
	})
	good, bad := p.layers[0].Digest.String(), p.layers[1].Digest.String()
	r.setFault(func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.HasSuffix(req.URL.Path, bad) {
			return false
		}
		for range 500 { // the other layer first
			if _, err := os.Stat(s.blobs.path(good)); err == nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		w.WriteHeader(http.StatusNotFound)
		return true
	})
	_, err := s.Pull(t.Context(), api.ImagePull{Reference: p.ref}, nil)
	wantError(t, err, api.CodeNotFound, "layer 2 of 2")
	checkNothingHalf(t, s)

	r.setFault(nil)
	pull(t, s, p.ref)
	if n := r.fetches(good); n != 1 {
		t.Errorf("the layer that was there was fetched %d times", n)
	}
	if kept, _ := os.ReadDir(s.dir(dirBlobs)); len(kept) != 0 {
		t.Errorf("%d layers are kept after success", len(kept))
	}
}

func TestPullFetchesADamagedKeptLayerAgain(t *testing.T) {
	r := newRegistry(t)
	s := openStore(t)
	p := r.push("k:1", []layer{gzipped(t, imagetest.Tar(t, file{Name: "a", Body: noise(100_000, 1)}))})
	if err := os.WriteFile(s.blobs.path(p.layers[0].Digest.String()), []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	pull(t, s, p.ref)
	checkNothingHalf(t, s)
}

func TestPullCancelledLeavesNothing(t *testing.T) {
	r := newRegistry(t)
	s := openStore(t)
	p := r.push("c:1", []layer{gzipped(t, imagetest.Tar(t, file{Name: "a", Body: noise(3<<20, 1)}))})
	ctx, cancel := context.WithCancel(t.Context())
	r.setFault(func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.Contains(req.URL.Path, "/blobs/"+p.layers[0].Digest.String()) {
			return false
		}
		_, _ = w.Write([]byte(noise(1<<20, 1)))
		w.(http.Flusher).Flush()
		cancel()
		<-req.Context().Done()
		return true
	})
	_, err := s.Pull(ctx, api.ImagePull{Reference: p.ref}, nil)
	wantError(t, err, api.CodeCancelled)
	checkNothingHalf(t, s)
	if l, _ := s.List(t.Context()); len(l) != 0 {
		t.Errorf("%v", l)
	}
	r.setFault(nil)
	pull(t, s, p.ref)
}

func TestPullRefusesBombs(t *testing.T) {
	r := newRegistry(t)
	s := openStore(t, func(o *Options) { o.MaxUnpacked = 8 * api.MiB })
	zeros := strings.Repeat("\x00", 64<<20)
	for n, files := range [][]file{
		{{Name: "bomb", Body: zeros}},
		{{Name: "liar", Size: 1 << 50}},
	} {
		p := r.push(numbered("bomb:%d", n), []layer{gzipped(t, imagetest.Tar(t, files...))})
		_, err := s.Pull(t.Context(), api.ImagePull{Reference: p.ref}, nil)
		wantError(t, err, api.CodeCorrupt, "8MiB")
	}
	// Many layers that are each small enough.
	l := gzipped(t, imagetest.Tar(t, file{Name: "part", Body: zeros[:5<<20]}))
	m := gzipped(t, imagetest.Tar(t, file{Name: "part2", Body: zeros[:5<<20]}))
	p := r.push("bomb:split", []layer{l, m})
	_, err := s.Pull(t.Context(), api.ImagePull{Reference: p.ref}, nil)
	wantError(t, err, api.CodeCorrupt, "8MiB")
	checkNothingHalf(t, s)
}

func TestPullRefusesHostileLayers(t *testing.T) {
	r := newRegistry(t)
	s := openStore(t)
	outside := filepath.Join(t.TempDir(), "outside")
	for n, files := range [][]file{
		{{Name: "../../../../../../../.." + outside, Body: "x"}},
		{{Name: "a", Type: tar.TypeLink, Link: "/../../etc/passwd"}},
		{{Name: "a", Type: tar.TypeSymlink, Link: "a"}, {Name: "a/x", Body: "x"}},
	} {
		p := r.push(numbered("evil:%d", n), []layer{gzipped(t, imagetest.Tar(t, files...))})
		_, err := s.Pull(t.Context(), api.ImagePull{Reference: p.ref}, nil)
		wantError(t, err, api.CodeCorrupt)
	}
	// A link out of the tree leads nowhere but into it.
	p := r.push("evil:link", []layer{gzipped(t, imagetest.Tar(t,
		file{Name: "out", Type: tar.TypeSymlink, Link: "../../../.." + filepath.Dir(outside)}, file{Name: "out/outside", Body: "x"}))})
	img := pull(t, s, p.ref)
	if _, err := os.Lstat(outside); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file was written outside: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(imagetest.Mount(t, s.EROFS(img.Digest)), outside)); err != nil {
		t.Error(err)
	}
	checkNothingHalf(t, s)
}

func TestPullDropsDevices(t *testing.T) {
	r := newRegistry(t)
	s := openStore(t)
	p := r.push("dev:1", []layer{gzipped(t, imagetest.Tar(t,
		file{Name: "dev/mem", Type: tar.TypeChar, Major: 1, Minor: 1}, file{Name: "dev/sda", Type: tar.TypeBlock, Major: 8}, file{Name: "dev/keep"}))})
	img := pull(t, s, p.ref)
	if got, _ := os.ReadDir(imagetest.Mount(t, s.EROFS(img.Digest)) + "/dev"); len(got) != 1 {
		t.Errorf("%v", got)
	}
}

func TestPullsShareTheirWork(t *testing.T) {
	r := newRegistry(t)
	s := openStore(t)
	shared := gzipped(t, imagetest.Tar(t, file{Name: "shared", Body: noise(4<<20, 1)}))
	a := r.push("a:1", []layer{shared, gzipped(t, imagetest.Tar(t, file{Name: "a"}))})
	b := r.push("b:1", []layer{shared, gzipped(t, imagetest.Tar(t, file{Name: "b"}))})
	// Nothing comes before everybody waits for it.
	gate := make(chan struct{})
	r.setFault(func(_ http.ResponseWriter, req *http.Request) bool {
		if strings.Contains(req.URL.Path, "/blobs/") {
			<-gate
		}
		return false
	})
	time.AfterFunc(300*time.Millisecond, func() { close(gate) })
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			ref := a.ref
			if i%3 == 0 {
				ref = b.ref
			}
			if _, err := s.Pull(t.Context(), api.ImagePull{Reference: ref}, func(string, int64, int64) {}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, d := range slices.Concat(a.layers, b.layers) {
		if n := r.fetches(d.Digest.String()); n != 1 {
			t.Errorf("layer %s was fetched %d times", d.Digest, n)
		}
	}
	checkNothingHalf(t, s)
}

func TestPullOutlivesTheFirstWhoAsked(t *testing.T) {
	r := newRegistry(t)
	s := openStore(t)
	p := r.push("o:1", smallImage(t, "x"))
	asked, gate := make(chan struct{}), make(chan struct{})
	var once sync.Once
	r.setFault(func(_ http.ResponseWriter, req *http.Request) bool {
		if strings.Contains(req.URL.Path, "/blobs/") {
			once.Do(func() { close(asked) })
			<-gate
		}
		return false
	})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := s.Pull(ctx, api.ImagePull{Reference: p.ref}, nil)
		wantError(t, err, api.CodeCancelled)
	})
	<-asked
	joined := make(chan struct{})
	wg.Go(func() {
		_, err := s.Pull(t.Context(), api.ImagePull{Reference: p.ref}, func(string, int64, int64) {
			select {
			case <-joined:
			default:
				close(joined)
			}
		})
		if err != nil {
			t.Error(err)
		}
	})
	<-joined
	cancel()
	time.Sleep(20 * time.Millisecond)
	close(gate)
	wg.Wait()
}

func TestPullIntoAFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"); err != nil {
		t.Skip("mounting a tmpfs: ", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	r := newRegistry(t)
	s, err := Open(Options{Dir: filepath.Join(dir, "images")})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	// Compresses well, so that only unpacking finds the disk full.
	big := r.push("full:1", []layer{gzipped(t, imagetest.Tar(t, file{Name: "a", Body: strings.Repeat("abcdefgh", 3<<20)}))})
	_, err = s.Pull(t.Context(), api.ImagePull{Reference: big.ref}, nil)
	wantError(t, err, api.CodeNoSpace, "full")
	checkNothingHalf(t, s)
	// This one can be seen not to fit.
	noisy := r.push("full:2", []layer{gzipped(t, imagetest.Tar(t, file{Name: "a", Body: noise(6<<20, 1)}))})
	_, err = s.Pull(t.Context(), api.ImagePull{Reference: noisy.ref}, nil)
	wantError(t, err, api.CodeNoSpace, "at least 12")
	if n := r.fetches(noisy.layers[0].Digest.String()); n != 0 {
		t.Error("it was fetched all the same")
	}
	if _, _, err := s.Collect(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	pull(t, s, r.push("fits:1", smallImage(t, "x")).ref)
}

func TestPullShowsCredentials(t *testing.T) {
	r := newRegistry(t)
	p := r.push("private:1", smallImage(t, "x"))
	r.setFault(func(w http.ResponseWriter, req *http.Request) bool {
		if user, password, ok := req.BasicAuth(); ok && user == "me" && password == "secret" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	dir := t.TempDir()
	write := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("docker-credential-cleavetest", "#!/bin/sh\nread server\n[ \"$server\" = "+r.host+" ] || { echo 'credentials not found in native keychain'; exit 1; }\necho '{\"Username\":\"me\",\"Secret\":\"secret\"}'\n", 0o755)
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	good := base64.StdEncoding.EncodeToString([]byte("me:secret"))
	for name, c := range map[string]struct {
		config string
		auth   *api.RegistryAuth
		code   api.Code
	}{
		"none":          {"{}", nil, api.CodeUnauthorized},
		"from the file": {`{"auths":{"` + r.host + `":{"auth":"` + good + `"}}}`, nil, ""},
		"another's":     {`{"auths":{"other.example":{"auth":"` + good + `"}}}`, nil, api.CodeUnauthorized},
		"helper":        {`{"credHelpers":{"` + r.host + `":"cleavetest"}}`, nil, ""},
		"store":         {`{"credsStore":"cleavetest"}`, nil, ""},
		"odd helper":    {`{"credsStore":"../cleavetest"}`, nil, api.CodeInvalid},
		"no helper":     {`{"credsStore":"cleave-absent"}`, nil, api.CodeUnauthorized},
		"bad file":      {`nonsense`, nil, api.CodeInvalid},
		"given":         {"{}", &api.RegistryAuth{Username: "me", Password: "secret"}, ""},
		"given wrong":   {`{"auths":{"` + r.host + `":{"auth":"` + good + `"}}}`, &api.RegistryAuth{Username: "me", Password: "x"}, api.CodeUnauthorized},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, func(o *Options) { o.DockerConfig = write("config.json", c.config, 0o600) })
			_, err := s.Pull(t.Context(), api.ImagePull{Reference: p.ref, Auth: c.auth}, nil)
			if c.code == "" && err != nil {
				t.Error(err)
			} else if c.code != "" {
				wantError(t, err, c.code)
			}
		})
	}
}
