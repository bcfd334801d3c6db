package container

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/enginetest"
)

var serial atomic.Uint32

// guestSpec is a guest of the busybox image that runs a script.
func guestSpec(t testing.TB, script string) *engine.Spec {
	n := serial.Add(1)
	return &engine.Spec{
		ID: "g" + string([]byte{'a' + byte(n/26%26), 'a' + byte(n%26)}), Name: "guest", Hostname: "guest",
		Image: engine.Image{Digest: "sha256:busybox", EROFS: shared.busybox}, Root: engine.Root{Dir: t.TempDir()},
		Proc:    engine.Process{Args: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/bin"}},
		UIDBase: 1<<24 + n<<16, IDCount: 1 << 16,
	}
}

// imageOf makes an image of the busybox root after change.
func imageOf(t testing.TB, change func(root string)) engine.Image {
	t.Helper()
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	if err := enginetest.BusyboxRoot(root); err != nil {
		t.Fatal(err)
	}
	change(root)
	file := filepath.Join(dir, "image.erofs")
	if err := enginetest.Erofs(root, file); err != nil {
		t.Fatal(err)
	}
	return engine.Image{Digest: "sha256:" + filepath.Base(filepath.Dir(dir)), EROFS: file}
}

// patience ends a test that hangs; it says nothing of how fast a machine is.
const patience = 3 * time.Minute

func forget(t testing.TB, e *Engine, id string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := e.Forget(ctx, id); err != nil {
		t.Errorf("forget: %v", err)
	}
}

// runGuest runs a guest to its end and returns what it wrote.
func runGuest(t testing.TB, e *Engine, spec *engine.Spec) (string, api.ExitStatus) {
	t.Helper()
	enginetest.Start(t, e, spec)
	st := enginetest.WaitExit(t, e, spec.ID)
	return enginetest.Log(t, e, spec.ID), st
}

func write(t testing.TB, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
}

func symlink(t testing.TB, target, name string) {
	t.Helper()
	if err := os.RemoveAll(name); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, name); err != nil {
		t.Fatal(err)
	}
}

// output runs a command of the host.
func output(t testing.TB, name string, args ...string) string {
	t.Helper()
	b, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", name, err, b)
	}
	return strings.TrimSpace(string(b))
}
