package uml

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/cleave-project/cleave/agent/guest"
	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/enginetest"
	"github.com/cleave-project/cleave/engine/machine/boot"
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

func build(dir string) (err error) {
	if shared.agent, err = enginetest.Build(dir, "cleave-agent"); err != nil {
		return err
	}
	if shared.keeper, err = enginetest.Build(dir, "cleave-keeper"); err != nil {
		return err
	}
	if shared.busybox, err = enginetest.Busybox(dir); err != nil {
		return err
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

// testEngine is an engine that can be opened again.
type testEngine struct {
	*Engine
	opts  engine.Options
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
	opts := enginetest.Options(t, dir, shared.agent, shared.keeper)
	e, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		e.Destroy()
		_ = e.Close()
	})
	return &testEngine{Engine: e, opts: opts}
}
