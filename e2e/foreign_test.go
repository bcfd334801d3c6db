package e2e

import (
	"archive/tar"
	"bytes"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// foreign are the architectures that a virtual machine can have beside the
// host's, with what uname says of them and the emulator.
var foreign = []struct{ arch, machine, emulator, pkg string }{
	{"arm64", "aarch64", "qemu-system-aarch64", "qemu-system-arm"},
	{"riscv64", "riscv64", "qemu-system-riscv64", "qemu-system-misc"},
}

// userland is all that there is in the image: a web server that is also
// uname and cat, and needs nothing else.
const userland = `package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
)

func main() {
	switch filepath.Base(os.Args[0]) {
	case "uname":
		var u syscall.Utsname
		if err := syscall.Uname(&u); err != nil {
			panic(err)
		}
		for _, c := range u.Machine {
			if c != 0 {
				fmt.Printf("%c", c)
			}
		}
		fmt.Println()
	case "cat":
		for _, path := range os.Args[1:] {
			f, err := os.Open(path)
			if err != nil {
				panic(err)
			}
			if _, err := io.Copy(os.Stdout, f); err != nil {
				panic(err)
			}
		}
	default:
		fmt.Println("serving")
		panic(http.ListenAndServe(":80", http.FileServer(http.Dir("/etc"))))
	}
}
`

// pushIndex puts an image for several platforms into a registry of its own,
// and returns its name.
func pushIndex(t *testing.T, archs ...string) string {
	t.Helper()
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(srv.Close)
	dir := t.TempDir()
	source := filepath.Join(dir, "main.go")
	if err := os.WriteFile(source, []byte(userland), 0o600); err != nil {
		t.Fatal(err)
	}
	var index v1.ImageIndex = empty.Index
	for _, arch := range archs {
		out := filepath.Join(dir, arch)
		build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, source)
		build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+arch)
		if b, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build for %s: %v: %s", arch, err, b)
		}
		program, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		img, err := mutate.AppendLayers(empty.Image, layer(t,
			entry{name: "bin", typ: tar.TypeDir}, entry{name: "bin/serve", body: string(program)},
			entry{name: "bin/uname", link: "serve", typ: tar.TypeSymlink}, entry{name: "bin/cat", link: "serve", typ: tar.TypeSymlink},
			entry{name: "etc", typ: tar.TypeDir}, entry{name: "root", typ: tar.TypeDir}))
		if err != nil {
			t.Fatal(err)
		}
		cfg, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		cfg = cfg.DeepCopy()
		cfg.Architecture, cfg.OS = arch, "linux"
		cfg.Config = v1.Config{Entrypoint: []string{"/bin/serve"}, Env: []string{"PATH=/bin"}}
		if img, err = mutate.ConfigFile(img, cfg); err != nil {
			t.Fatal(err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}},
		})
	}
	ref := strings.TrimPrefix(srv.URL, "http://") + "/team/web:v1"
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(tag, index); err != nil {
		t.Fatal(err)
	}
	return ref
}

// TestOtherArchitectures runs one image of several platforms as guests of
// several architectures, side by side under its one name.
func TestOtherArchitectures(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the host is the one of amd64")
	}
	h := newHost(t)
	ref := pushIndex(t, "amd64", "arm64", "riscv64")
	h.do("launch", ref, "native")
	for i, f := range foreign {
		t.Run(f.arch, func(t *testing.T) {
			h := h.in(t)
			if _, err := exec.LookPath(f.emulator); err != nil {
				h.refused("install the package "+f.pkg, "launch", ref, "g", "--kind", "vm", "--arch", f.arch)
				t.Skipf("needs an emulator: %v (install %s)", err, f.pkg)
			}
			h.refused("fetch debian --kind vm --arch "+f.arch, "launch", ref, "early", "--kind", "vm", "--arch", f.arch)
			if r := h.try("kernel", "fetch", "debian", "--arch", f.arch); r.code != 0 && strings.Contains(r.err, "could not be fetched") {
				t.Skipf("needs a network: %s", r.err)
			} else if r.code != 0 {
				t.Fatalf("%+v", r)
			}
			h.refused("comes up|boots in", "launch", ref, "small", "--kind", "vm", "--arch", f.arch, "--memory", "80MiB")
			port := []string{"18091", "18092"}[i]
			h.do("launch", ref, f.arch, "--kind", "vm", "--arch", f.arch, "--publish", port+":80")
			h.speaks(f.arch, f.machine, port)
			h.do("restart", f.arch)
			h.speaks(f.arch, f.machine, port)
			h.do("delete", "--force", f.arch)
		})
	}
	h.do("launch", ref, "again")
	for _, g := range []string{"native", "again"} {
		if out := h.do("exec", g, "--", "uname"); out != "x86_64\n" {
			t.Errorf("%s is a guest of %s", g, out)
		}
	}
}

// speaks wants a guest to be one of a kind of machine, to take and give
// files, and to answer at a published port.
func (h *host) speaks(name, machine, port string) {
	t := h.t
	t.Helper()
	if out := h.do("exec", name, "--", "uname"); out != machine+"\n" {
		t.Errorf("%s is a guest of %s", name, out)
	}
	data := bytes.Repeat([]byte("sent to "+name+"\n"), 10000)
	file := filepath.Join(t.TempDir(), "sent")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	h.do("cp", file, name+":/etc/sent")
	if out := h.do("exec", name, "--", "cat", "/etc/sent"); out != string(data) {
		t.Errorf("it has %d bytes of %d", len(out), len(data))
	}
	eventually(t, "the published port answers", func() bool {
		r, err := http.Get("http://127.0.0.1:" + port + "/sent")
		if err != nil {
			return false
		}
		defer r.Body.Close()
		b, _ := io.ReadAll(r.Body)
		return bytes.Equal(b, data)
	})
}
