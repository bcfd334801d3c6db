package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/image/imagetest"
)

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
		eventually(t, "the other layer is there first", func() bool {
			_, err := os.Stat(s.blobs.path(good))
			return err == nil
		})
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
		p := r.push(fmt.Sprintf("bomb:%d", n), []layer{gzipped(t, imagetest.Tar(t, files...))})
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
		p := r.push(fmt.Sprintf("evil:%d", n), []layer{gzipped(t, imagetest.Tar(t, files...))})
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
	// No layer comes before everybody waits for it.
	gate := make(chan struct{})
	layers := slices.Concat(a.layers, b.layers)
	r.setFault(func(_ http.ResponseWriter, req *http.Request) bool {
		if slices.ContainsFunc(layers, func(d v1.Descriptor) bool { return strings.HasSuffix(req.URL.Path, d.Digest.String()) }) {
			<-gate
		}
		return false
	})
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
	eventually(t, "all wait", func() bool {
		waiting := 0
		s.flights.mu.Lock()
		for _, f := range s.flights.open {
			waiting += len(f.waiting)
		}
		s.flights.mu.Unlock()
		s.blobs.mu.Lock()
		defer s.blobs.mu.Unlock()
		bl := s.blobs.open[a.layers[0].Digest.String()]
		return waiting == 12 && bl != nil && bl.holders == 2
	})
	close(gate)
	wg.Wait()
	for _, d := range layers {
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
