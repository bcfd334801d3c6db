package qemu

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/enginetest"
	"github.com/cleave-project/cleave/kernel"
	"github.com/cleave-project/cleave/kernel/kerneltest"
)

// shared is what all tests use, built once.
var shared struct{ agent, keeper, busybox string }

func TestMain(m *testing.M) {
	code, err := func() (int, error) {
		dir, err := os.MkdirTemp("", "cleave-qemu-")
		if err != nil {
			return 1, err
		}
		defer os.RemoveAll(dir)
		if err := buildShared(dir); err != nil {
			return 1, err
		}
		return m.Run(), nil
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

func buildShared(dir string) (err error) {
	if shared.agent, err = enginetest.Build(dir, "cleave-agent"); err != nil {
		return err
	}
	if shared.keeper, err = enginetest.Build(dir, "cleave-keeper"); err != nil {
		return err
	}
	if shared.busybox, err = enginetest.Busybox(dir); err != nil {
		return err
	}
	return os.Chmod(dir, 0o755)
}

// stock is Debian's kernel for virtual machines.
var stock = sync.OnceValues(func() (*kernel.Store, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	return kerneltest.Stock(ctx, filepath.Join(filepath.Dir(shared.agent), "kernels"), func(string) (string, error) { return shared.agent, nil })
})

func boot(t testing.TB) engine.Kernel {
	t.Helper()
	s, err := stock()
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.Boot(t.Context(), api.KindVM, "amd64", "")
	if err != nil {
		t.Fatal(err)
	}
	return engine.Kernel{Name: b.Name, Image: b.Image, Initrd: b.Initrd, Args: b.Args, Modules: b.Modules, Version: b.Version}
}

// needQEMU skips where there is none.
func needQEMU(t testing.TB) {
	t.Helper()
	if _, err := newTools().find(t.Context(), archs[0]); api.IsCode(err, api.CodeUnsupported) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() != 0 {
		t.Skip("machines are started by root")
	}
}

// newOptions are those of the engines of one test, which live one after the
// other.
func newOptions(t testing.TB) engine.Options {
	t.Helper()
	needQEMU(t)
	return enginetest.Options(t, enginetest.Reachable(t), shared.agent, shared.keeper)
}

// open opens an engine, which the test may close earlier.
func open(t testing.TB, opts engine.Options) *Engine {
	t.Helper()
	e, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		e.Destroy()
		e.Close()
	})
	return e
}

func newEngine(t testing.TB) *Engine { return open(t, newOptions(t)) }

var serial atomic.Uint32

func newSpec(t testing.TB) *engine.Spec {
	n := serial.Add(1)
	return &engine.Spec{
		ID: "v" + string([]byte{'a' + byte(n/26%26), 'a' + byte(n%26)}), Name: "machine", Hostname: "machine",
		Root:    engine.Root{Dir: t.TempDir(), Size: 64 * api.MiB},
		UIDBase: 3<<24 + n<<16, IDCount: 1 << 16,
		Machine: &engine.Machine{Arch: "amd64", CPUs: 1, Memory: 256 * api.MiB},
	}
}

// imageSpec is a guest of the busybox image that runs a script.
func imageSpec(t testing.TB, script string) *engine.Spec {
	s := newSpec(t)
	s.Image = engine.Image{Digest: "sha256:busybox", EROFS: shared.busybox}
	s.Proc = engine.Process{Args: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/bin"}}
	s.Machine.Kernel = boot(t)
	return s
}

// ownSpec is a system of its own with an empty disk.
func ownSpec(t testing.TB) *engine.Spec {
	s := newSpec(t)
	s.System = true
	s.Proc = engine.Process{Args: []string{"firmware"}}
	s.Machine.Firmware = engine.Firmware{Type: "bios", State: t.TempDir(), Order: []string{"disk", "cdrom"}}
	f, err := os.Create(filepath.Join(s.Root.Dir, engine.RootDisk))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(s.Root.Size)); err != nil {
		t.Fatal(err)
	}
	return s
}
