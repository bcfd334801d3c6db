package qemu

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/keeper"
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

func buildShared(dir string) error {
	for name, to := range map[string]*string{"cleave-agent": &shared.agent, "cleave-keeper": &shared.keeper} {
		*to = filepath.Join(dir, name)
		c := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", *to, "github.com/cleave-project/cleave/cmd/"+name)
		c.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := c.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w: %s", name, err, out)
		}
	}
	root := filepath.Join(dir, "root")
	if err := busyboxRoot(root); err != nil {
		return err
	}
	shared.busybox = filepath.Join(dir, "busybox.erofs")
	if out, err := exec.Command("mkfs.erofs", "--all-root", shared.busybox, root).CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.erofs: %w: %s (install erofs-utils)", err, out)
	}
	return os.Chmod(dir, 0o755)
}

// busyboxRoot makes a root file system of busybox alone.
func busyboxRoot(root string) error {
	for _, d := range []string{"bin", "etc", "tmp", "var", "root", "proc", "sys", "dev"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	b, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return fmt.Errorf("%w (install busybox-static)", err)
	}
	if err := os.WriteFile(filepath.Join(root, "bin/busybox"), b, 0o755); err != nil {
		return err
	}
	out, err := exec.Command("/bin/busybox", "--list").Output()
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(string(out)) {
		if name != "busybox" {
			if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil {
				return err
			}
		}
	}
	passwd := "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n"
	return os.WriteFile(filepath.Join(root, "etc/passwd"), []byte(passwd), 0o644)
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

// place is where engines of one test live, one after the other.
type place struct{ opts Options }

func newPlace(t testing.TB) *place {
	t.Helper()
	needQEMU(t)
	dir := t.TempDir()
	for d := dir; d != "/"; d = filepath.Dir(d) { // monitors reopen disks
		if st, err := os.Stat(d); err == nil && st.Mode().Perm()&0o001 == 0 {
			_ = os.Chmod(d, st.Mode().Perm()|0o711)
		}
	}
	k, _, err := keeper.Ensure(context.Background(), filepath.Join(dir, "keeper.sock"), shared.keeper, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Stop(context.Background()); err != nil {
			t.Error(err)
		}
		k.Close()
	})
	sum := sha256.Sum256([]byte(dir))
	return &place{Options{
		Run: filepath.Join(dir, "run"), LogDir: func(id string) string { return filepath.Join(dir, "log", id) },
		Scope: "t" + hex.EncodeToString(sum[:4]), Keeper: k, AgentBinary: shared.agent,
		Log: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	}}
}

// open opens an engine, which the test may close earlier.
func (p *place) open(t testing.TB) *Engine {
	t.Helper()
	e, err := New(p.opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		e.Destroy()
		e.Close()
	})
	return e
}

func newEngine(t testing.TB) *Engine { return newPlace(t).open(t) }

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", bytes.TrimSpace(p))
	return len(p), nil
}

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

// startGuest starts a guest that is forgotten after the test.
func startGuest(t testing.TB, e *Engine, spec *engine.Spec) *engine.Guest {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	g, err := e.Start(ctx, spec)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := e.Forget(ctx, spec.ID); err != nil {
			t.Errorf("forget: %v", err)
		}
	})
	if err != nil {
		t.Fatalf("start: %v\n%s", err, guestLog(e, spec.ID))
	}
	return g
}

func waitExit(t testing.TB, e *Engine, id string) api.ExitStatus {
	t.Helper()
	deadline := time.After(5 * time.Minute)
	for {
		select {
		case x := <-e.Exits():
			if x.ID == id {
				return x.Status
			}
		case <-deadline:
			t.Fatalf("guest %s doesn't end\n%s", id, guestLog(e, id))
		}
	}
}

func guestLog(e *Engine, id string) string {
	var b bytes.Buffer
	_ = keeper.ReadLogs(context.Background(), e.LogDir(id), keeper.LogOptions{}, func(l keeper.LogEntry) error {
		b.Write(l.Data)
		return nil
	})
	return b.String()
}

// waitLog waits until a guest has written something.
func waitLog(t testing.TB, e *Engine, id, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	found := errors.New("found")
	var got strings.Builder
	err := keeper.ReadLogs(ctx, e.LogDir(id), keeper.LogOptions{Follow: true}, func(l keeper.LogEntry) error {
		got.Write(l.Data)
		if strings.Contains(got.String(), text) {
			return found
		}
		return nil
	})
	if !errors.Is(err, found) {
		t.Fatalf("guest %s doesn't write %q: %v\n%s", id, text, err, got.String())
	}
}
