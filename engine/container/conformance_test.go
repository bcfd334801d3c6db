package container

import (
	"testing"

	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/enginetest"
)

func TestConformance(t *testing.T) {
	e := newEngine(t)
	enginetest.Run(t, enginetest.Fixture{
		Engine: e,
		Image:  engine.Image{Digest: "sha256:busybox", EROFS: shared.busybox},
		Volume: func(t *testing.T) string { return t.TempDir() },
		Reopen: func(*testing.T) engine.Engine { return reopen(t, e) },
	})
}

// reopen is what a restarted daemon does.
func reopen(t testing.TB, old *Engine) *Engine {
	t.Helper()
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	e, err := New(old.opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}
