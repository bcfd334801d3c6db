package uml

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/cleave-project/cleave/agent/guest"
	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/machine/boot"
	"github.com/cleave-project/cleave/keeper"
	"github.com/cleave-project/cleave/kernel"
)

// The agent is built by TestMain. That its code is linked here too lets the
// test cache know when it changes.
var _, _ = boot.Run, guest.Init

// Binaries, image and kernel that all tests share.
var shared struct {
	agent, keeper string
	busybox       string // EROFS of a small application image
	kernel        engine.Kernel
	missing       error // why there is none
}

func TestMain(m *testing.M) {
	code, err := func() (int, error) {
		dir, err := os.MkdirTemp("", "cleave-uml-")
		if err != nil {
			return 1, err
		}
		defer func() { _ = os.RemoveAll(dir) }()
		// Monitors are other users, and are shown files in it.
		if err := os.Chmod(dir, 0o711); err != nil {
			return 1, err
		}
		if err := build(dir); err != nil {
			return 1, err
		}
		return m.Run(), nil
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

func build(dir string) error {
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
	shared.kernel, shared.missing = distributionKernel(filepath.Join(dir, "kernels"))
	return nil
}

// distributionKernel is User Mode Linux as the distribution has it.
func distributionKernel(dir string) (engine.Kernel, error) {
	program, err := exec.LookPath("linux.uml")
	if err != nil {
		return engine.Kernel{}, fmt.Errorf("User Mode Linux is not installed (package user-mode-linux): %w", err)
	}
	store, err := kernel.Open(kernel.Options{Dir: dir, Agent: func(string) (string, error) { return shared.agent, nil }})
	if err != nil {
		return engine.Kernel{}, err
	}
	modules, err := filepath.Glob("/usr/lib/uml/modules/*")
	if err != nil || len(modules) != 1 {
		return engine.Kernel{}, fmt.Errorf("modules of User Mode Linux: %q, %w", modules, err)
	}
	_, err = store.Add(context.Background(), api.KernelAdd{Name: "uml", Kind: api.KindPVM, Image: program, Modules: modules[0]})
	if err != nil {
		return engine.Kernel{}, err
	}
	b, err := store.Boot(context.Background(), api.KindPVM, "amd64", "uml")
	return engine.Kernel{Name: b.Name, Version: b.Version, Image: b.Image, Initrd: b.Initrd, Modules: b.Modules, Args: b.Args}, err
}

func busyboxRoot(root string) error {
	for _, d := range []string{"bin", "etc", "tmp", "var", "root"} {
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
	for name := range bytes.Lines(out) {
		if n := string(bytes.TrimSpace(name)); n != "busybox" {
			if err := os.Symlink("busybox", filepath.Join(root, "bin", n)); err != nil {
				return err
			}
		}
	}
	passwd := "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n"
	return os.WriteFile(filepath.Join(root, "etc/passwd"), []byte(passwd), 0o644)
}

// testEngine is an engine that can be opened again.
type testEngine struct {
	*Engine
	opts  Options
	watch sync.Once
	ends  sync.Map // chan engine.Exit, by the guest's id
}

// newEngine is an engine with a keeper of its own.
func newEngine(t testing.TB) *testEngine {
	t.Helper()
	if shared.missing != nil {
		t.Skip(shared.missing)
	}
	if os.Geteuid() != 0 {
		t.Skip("guests are started by root")
	}
	dir, err := os.MkdirTemp("", "uml") // t.TempDir's are too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	k, _, err := keeper.Ensure(context.Background(), filepath.Join(dir, "keeper.sock"), shared.keeper, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Stop(context.Background()); err != nil {
			t.Error(err)
		}
		_ = k.Close()
	})
	sum := sha256.Sum256([]byte(dir))
	o := Options{
		Run: filepath.Join(dir, "run"), LogDir: func(id string) string { return filepath.Join(dir, "log", id) },
		Scope: "t" + hex.EncodeToString(sum[:4]), Keeper: k, AgentBinary: shared.agent,
		Log: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	}
	e, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		e.Destroy()
		_ = e.Close()
	})
	return &testEngine{Engine: e, opts: o}
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", bytes.TrimSpace(p))
	return len(p), nil
}
