package uml

import (
	"runtime"
	"testing"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/enginetest"
)

func TestConformance(t *testing.T) {
	e := newEngine(t)
	enginetest.Run(t, enginetest.Fixture{
		Engine: e.Engine, Image: image(), Machine: hardware(),
		Volume: func(t *testing.T) string { return t.TempDir() },
		Reopen: func(*testing.T) engine.Engine { return e.reopen(t).Engine },
	})
}

func image() engine.Image {
	return engine.Image{Digest: "sha256:busybox", EROFS: shared.busybox}
}

func hardware() *engine.Machine {
	return &engine.Machine{Arch: runtime.GOARCH, CPUs: 1, Memory: 128 * api.MiB, Kernel: shared.kernel}
}

// reopen is what a restarted daemon does.
func (e *testEngine) reopen(t testing.TB) *testEngine {
	t.Helper()
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := New(e.opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = again.Close() })
	return &testEngine{Engine: again, opts: e.opts}
}
