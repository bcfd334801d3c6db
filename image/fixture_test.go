package image

import (
	"bytes"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/image/imagetest"
	"github.com/cleave-project/cleave/image/manifest"
)

type file = imagetest.File

// openStore opens a store in a fresh directory.
func openStore(t testing.TB, change ...func(*Options)) *Store {
	t.Helper()
	opts := Options{Dir: t.TempDir(), DockerConfig: "/nonexistent"}
	for _, c := range change {
		c(&opts)
	}
	s, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// testRegistry is a registry on loopback that counts and can misbehave.
type testRegistry struct {
	t    testing.TB
	host string

	mu      sync.Mutex
	fetched map[string]int // GETs of blobs, by digest
	// fault answers a request instead of the registry if it returns true.
	fault func(w http.ResponseWriter, r *http.Request) bool
}

func newRegistry(t testing.TB) *testRegistry {
	t.Helper()
	r := &testRegistry{t: t, fetched: map[string]int{}}
	inner := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		if i := strings.LastIndex(req.URL.Path, "/blobs/"); i >= 0 && req.Method == http.MethodGet {
			r.fetched[req.URL.Path[i+len("/blobs/"):]]++
		}
		fault := r.fault
		r.mu.Unlock()
		if fault == nil || !fault(w, req) {
			inner.ServeHTTP(w, req)
		}
	}))
	t.Cleanup(srv.Close)
	u, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	r.host = u.Host
	return r
}

func (r *testRegistry) setFault(f func(w http.ResponseWriter, r *http.Request) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fault = f
}

func (r *testRegistry) fetches(digest string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.fetched[digest]
}

// send puts something into the registry.
func (r *testRegistry) send(method, path, contentType string, body []byte) {
	r.t.Helper()
	req, err := http.NewRequest(method, "http://"+r.host+path, bytes.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		msg, _ := io.ReadAll(resp.Body)
		r.t.Fatalf("%s %s: %s %s", method, path, resp.Status, msg)
	}
}

func (r *testRegistry) blob(repo string, body []byte) v1.Descriptor {
	r.t.Helper()
	digest := manifest.Digest(body)
	r.send(http.MethodPost, "/v2/"+repo+"/blobs/uploads/?digest="+digest, "application/octet-stream", body)
	return describe(r.t, body, "")
}

func describe(t testing.TB, body []byte, mt types.MediaType) v1.Descriptor {
	t.Helper()
	h, err := v1.NewHash(manifest.Digest(body))
	if err != nil {
		t.Fatal(err)
	}
	return v1.Descriptor{MediaType: mt, Digest: h, Size: int64(len(body))}
}

// layer is a layer before it is packed.
type layer struct {
	tar    []byte
	packed []byte
	mt     types.MediaType
}

func gzipped(t testing.TB, tar []byte) layer {
	return layer{tar, pack(t, "gz", tar), types.OCILayer}
}

func pack(t testing.TB, how string, p []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser
	var err error
	switch how {
	case "gz":
		w = gzip.NewWriter(&b)
	case "zst":
		w, err = zstd.NewWriter(&b)
	default:
		return p
	}
	if err == nil {
		_, err = w.Write(p)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// pushed is an image in the registry.
type pushed struct {
	ref, digest string
	desc        v1.Descriptor
	layers      []v1.Descriptor
}

type change func(*v1.ConfigFile, *v1.Manifest)

// push stores an image under repo:tag.
func (r *testRegistry) push(name string, layers []layer, changes ...change) pushed {
	r.t.Helper()
	repo, tag, _ := strings.Cut(name, ":")
	config := v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, RootFS: v1.RootFS{Type: "layers"}}
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1}
	for _, l := range layers {
		d := r.blob(repo, l.packed)
		d.MediaType = l.mt
		m.Layers = append(m.Layers, d)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, describe(r.t, l.tar, "").Digest)
	}
	for _, c := range changes {
		c(&config, &m)
	}
	raw := asJSON(r.t, config)
	cd := r.blob(repo, raw)
	cd.MediaType = types.OCIConfigJSON
	if m.Config.MediaType != "" {
		cd.MediaType = m.Config.MediaType
	}
	m.Config = cd
	body := asJSON(r.t, m)
	r.send(http.MethodPut, "/v2/"+repo+"/manifests/"+tag, string(m.MediaType), body)
	d := describe(r.t, body, m.MediaType)
	d.Platform = &v1.Platform{OS: config.OS, Architecture: config.Architecture, Variant: config.Variant}
	return pushed{ref: r.host + "/" + name, digest: manifest.Digest(body), desc: d, layers: m.Layers}
}

// index stores an index of images that are in the same repository.
func (r *testRegistry) index(name string, entries ...v1.Descriptor) string {
	r.t.Helper()
	repo, tag, _ := strings.Cut(name, ":")
	body := asJSON(r.t, v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: entries})
	r.send(http.MethodPut, "/v2/"+repo+"/manifests/"+tag, string(types.OCIImageIndex), body)
	return r.host + "/" + name
}

func asJSON(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func pull(t testing.TB, s *Store, ref string) *api.Image {
	t.Helper()
	img, err := s.Pull(t.Context(), api.ImagePull{Reference: ref}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// tree mounts an image and lists it.
func tree(t testing.TB, s *Store, digest string) []string {
	t.Helper()
	return imagetest.List(t, imagetest.Mount(t, s.EROFS(digest)), imagetest.Options{})
}

// checkNothingHalf fails the test if work in progress was left.
func checkNothingHalf(t testing.TB, s *Store) {
	t.Helper()
	files, err := os.ReadDir(s.dir(dirTmp))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		t.Errorf("left in tmp: %s", f.Name())
	}
	roots, err := os.ReadDir(s.dir(dirRoots))
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	for _, rec := range s.images {
		used[s.rootPath(rec.Root)] = true
	}
	for _, f := range roots {
		if !used[s.dir(dirRoots)+"/"+f.Name()] {
			t.Errorf("a root without an image: %s", f.Name())
		}
	}
}

// wantError checks an error's code and that its text has all of the words.
func wantError(t testing.TB, err error, code api.Code, words ...string) {
	t.Helper()
	if !api.IsCode(err, code) {
		t.Errorf("got %v (%s), want code %s", err, api.AsError(err).Code, code)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q doesn't say %q", err, w)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("%q has more than one line", err)
	}
}

// eventually waits for what nothing announces. The limit ends a test that
// hangs; it says nothing of how fast a machine is.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Errorf("it never came that %s", what)
			return
		}
	}
}

// noise is content that doesn't compress.
func noise(n int, seed uint64) string {
	b := make([]byte, n)
	for i := range b {
		seed = seed*6364136223846793005 + 1442695040888963407
		b[i] = byte(seed >> 56)
	}
	return string(b)
}

func smallImage(t testing.TB, text string) []layer {
	return []layer{gzipped(t, imagetest.Tar(t, file{Name: "etc/"}, file{Name: "etc/text", Body: text}))}
}
