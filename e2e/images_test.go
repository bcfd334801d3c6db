package e2e

import (
	"archive/tar"
	"bytes"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// entry is one entry of a layer.
type entry struct {
	name, body, link string
	typ              byte
	mode             int64
}

func layer(t *testing.T, entries ...entry) v1.Layer {
	t.Helper()
	b := &bytes.Buffer{}
	w := tar.NewWriter(b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: e.typ, Linkname: e.link, Mode: e.mode, Size: int64(len(e.body)), ModTime: time.Unix(1700000000, 0)}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestPullFromARegistryAndRun pulls an image of several layers with
// whiteouts, an opaque directory, hard links and a configuration, runs it,
// and sees in the guest what the layers come to.
func TestPullFromARegistryAndRun(t *testing.T) {
	h := newHost(t)
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer srv.Close()
	busybox, err := os.ReadFile(filepath.Join(h.bin, "busybox"))
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image,
		layer(t, entry{name: "bin", typ: tar.TypeDir}, entry{name: "bin/busybox", body: string(busybox)}, entry{name: "bin/sh", link: "busybox", typ: tar.TypeSymlink},
			entry{name: "etc", typ: tar.TypeDir}, entry{name: "etc/passwd", body: "root:x:0:0::/:/bin/sh\napp:x:1000:1000::/data:/bin/sh\n", mode: 0o644},
			entry{name: "gone", body: "x"}, entry{name: "dir", typ: tar.TypeDir}, entry{name: "dir/old", body: "x"}, entry{name: "data", typ: tar.TypeDir}),
		layer(t, entry{name: ".wh.gone"}, entry{name: "dir/.wh..wh..opq"}, entry{name: "dir/new", body: "new"},
			entry{name: "one", body: "same", mode: 0o640}, entry{name: "two", link: "one", typ: tar.TypeLink}),
	)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cfg = cfg.DeepCopy()
	cfg.Architecture, cfg.OS = "amd64", "linux"
	cfg.Config = v1.Config{Entrypoint: []string{"/bin/sh", "-c"}, Cmd: []string{"echo $GREETING from $(pwd) as $(/bin/busybox id -u)"}, Env: []string{"GREETING=hello"}, WorkingDir: "/data", User: "app"}
	if img, err = mutate.ConfigFile(img, cfg); err != nil {
		t.Fatal(err)
	}
	ref := strings.TrimPrefix(srv.URL, "http://") + "/team/app:v1"
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, img); err != nil {
		t.Fatal(err)
	}

	r := h.try("run", "--rm", ref)
	if r.code != 0 || strings.TrimSpace(r.out) != "hello from /data as 1000" {
		t.Errorf("with the image's configuration: %+v", r)
	}
	r = h.try("run", "--rm", ref, "--", "cd /; /bin/busybox ls; /bin/busybox ls dir; /bin/busybox stat -c %h one; [ one -ef two ] && echo linked")
	for _, want := range []string{"dir", "new", "2\n", "linked"} {
		if !strings.Contains(r.out, want) {
			t.Errorf("no %q in %+v", want, r)
		}
	}
	if strings.Contains(r.out, "gone") || strings.Contains(r.out, "old") {
		t.Errorf("what was deleted is there: %q", r.out)
	}
	h.refused("v2", "launch", strings.Replace(ref, ":v1", ":v2", 1), "a")
	h.refused("platform|arm64", "image", "pull", ref, "--platform", "linux/arm64")
	h.do("launch", ref, "keeps", "--entrypoint", "/bin/busybox", "--", "sleep", "1000")
	h.refused("used by default/keeps", "image", "delete", ref)
	h.do("delete", "--force", "keeps")
	h.do("image", "delete", ref)
	if out := h.do("image", "list"); strings.Contains(out, "team/app") {
		t.Errorf("it is still listed:\n%s", out)
	}
}

// TestSystemGuestReachesItsTarget runs Debian with systemd as PID 1, behind
// every wall.
func TestSystemGuestReachesItsTarget(t *testing.T) {
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		t.Skipf("needs mmdebstrap: %v", err)
	}
	h := newHost(t)
	h.do("image", "build", "debian:bookworm", "--system")
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			if _, err := exec.LookPath("qemu-system-x86_64"); err != nil && kind == "vm" {
				t.Skipf("needs an emulator: %v (install qemu-system-x86)", err)
			}
			h := h.in(t)
			if kind != "container" {
				h.do("kernel", "fetch", "debian", "--kind", kind)
			}
			h.do("launch", "debian:bookworm", "deb", "--kind", kind, "--wait")
			h.systemRuns("deb")
			h.do("delete", "--force", "deb")
		})
	}
}

// systemRuns wants a guest's systemd to come up, to stop in good order, and
// to start again.
func (h *host) systemRuns(name string) {
	t := h.t
	t.Helper()
	if in := h.show(name); !in.Status.System {
		t.Fatalf("not a system guest: %+v", in.Status)
	}
	var state string
	eventually(t, "systemd is up", func() bool {
		state = strings.TrimSpace(h.try("exec", name, "--", "systemctl", "is-system-running").out)
		return state == "running" || state == "degraded"
	})
	if state != "running" {
		t.Errorf("%s:\n%s", state, h.try("exec", name, "--", "systemctl", "list-units", "--failed", "--no-legend").out)
	}
	r := h.try("exec", name, "--", "sh", "-c", "systemctl is-active default.target; cat /proc/1/comm; id -u")
	if r.out != "active\nsystemd\n0\n" {
		t.Errorf("%+v", r)
	}
	begin := time.Now()
	h.do("stop", name)
	s := h.show(name).Status
	if s.Exit == nil || s.Exit.Signal == "SIGKILL" {
		t.Errorf("stopped after %s: %+v", time.Since(begin), s.Exit)
	}
	t.Logf("systemd stopped after %s: %+v", time.Since(begin), *s.Exit)
	h.do("start", name)
}
