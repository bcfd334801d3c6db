package container

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/cleave-project/cleave/agent/guest"
	"github.com/cleave-project/cleave/engine/container/setup"
	"github.com/cleave-project/cleave/engine/enginetest"
)

// The agent is built by TestMain. That its code is linked here too lets the
// test cache know when it changes.
var _, _ = setup.Run, guest.Init

// Binaries and images that all tests share.
var shared struct {
	agent, keeper string
	busybox       string // EROFS of a small application image
}

func TestMain(m *testing.M) {
	code, err := func() (int, error) {
		dir, err := os.MkdirTemp("", "cleave-engine-")
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

// buildShared builds what all tests share. Where there is no compiler, the
// programs are in CLEAVE_TEST_BIN.
func buildShared(dir string) (err error) {
	if bin := os.Getenv("CLEAVE_TEST_BIN"); bin != "" {
		shared.agent, shared.keeper = filepath.Join(bin, "cleave-agent"), filepath.Join(bin, "cleave-keeper")
	} else {
		if shared.agent, err = enginetest.Build(dir, "cleave-agent"); err != nil {
			return err
		}
		if shared.keeper, err = enginetest.Build(dir, "cleave-keeper"); err != nil {
			return err
		}
	}
	shared.busybox, err = enginetest.Busybox(dir)
	return err
}

// newEngine is an engine with a keeper of its own.
func newEngine(t testing.TB) *Engine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("containers are started by root")
	}
	e, err := New(enginetest.Options(t, t.TempDir(), shared.agent, shared.keeper))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		e.Destroy()
		e.Close()
	})
	return e
}
