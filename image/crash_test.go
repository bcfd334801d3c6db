package image

import (
	"bytes"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/image/imagetest"
)

// TestCrashChild is the process that TestPullSurvivesKill kills.
func TestCrashChild(t *testing.T) {
	dir, ref := os.Getenv("CLEAVE_CRASH_DIR"), os.Getenv("CLEAVE_CRASH_REF")
	if dir == "" {
		t.Skip("only run by TestPullSurvivesKill")
	}
	s, err := Open(Options{Dir: dir, DockerConfig: "/nonexistent"})
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := s.Pull(t.Context(), api.ImagePull{Reference: ref}, nil); err != nil {
			t.Fatal(err)
		}
		if err := s.Delete(t.Context(), ref, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// A process that pulls and deletes without end is killed at ever different
// points; the store must open each time, and hold the image whole or not at
// all.
func TestPullSurvivesKill(t *testing.T) {
	r := newRegistry(t)
	var layers []layer
	for n := range 3 {
		layers = append(layers, gzipped(t, imagetest.Tar(t, file{Name: string(rune('a' + n)), Body: noise(400_000, uint64(n))})))
	}
	p := r.push("crash:1", layers)
	fresh := openStore(t)
	want := tree(t, fresh, pull(t, fresh, p.ref).Digest)

	dir := t.TempDir()
	whole := 0
	for round := range 20 {
		started := make(chan struct{}, 1)
		r.setFault(func(_ http.ResponseWriter, req *http.Request) bool {
			select {
			case started <- struct{}{}:
			default:
			}
			return false
		})
		cmd := exec.Command(os.Args[0], "-test.run=^TestCrashChild$")
		cmd.Env = append(os.Environ(), "CLEAVE_CRASH_DIR="+dir, "CLEAVE_CRASH_REF="+p.ref)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		<-started
		time.Sleep(time.Duration(round*7) * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()

		s := openStore(t, func(o *Options) { o.Dir = dir })
		checkNothingHalf(t, s)
		if img, err := s.Get(t.Context(), p.ref); err == nil {
			whole++
			if d := cmp.Diff(want, tree(t, s, img.Digest)); d != "" {
				t.Errorf("round %d: %s", round, d)
			}
		} else {
			wantError(t, err, api.CodeNotFound)
		}
		if _, _, err := s.Collect(t.Context(), nil); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Logf("the image was there after %d of 20 kills", whole)
}

func FuzzImport(f *testing.F) {
	f.Add(imagetest.Tar(f, file{Name: "bin/sh"}))
	f.Add(layout(f, map[string]string{"app:1": "x"}))
	f.Add(imagetest.Tar(f, file{Name: "manifest.json", Body: `[{"Config":"c","RepoTags":["a:1"],"Layers":["l"]}]`}, file{Name: "c", Body: "{}"}, file{Name: "l"}))
	s := openStore(f, func(o *Options) { o.MaxUnpacked = 16 * api.MiB })
	f.Fuzz(func(t *testing.T, b []byte) {
		img, err := s.Import(t.Context(), bytes.NewReader(b), "fuzz", "", nil)
		if err != nil {
			if code := api.AsError(err).Code; code == api.CodeInternal || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: %q", code, err)
			}
			return
		}
		if err := s.Delete(t.Context(), img.Digest, nil); err != nil {
			t.Error(err)
		}
	})
}
