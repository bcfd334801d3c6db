package container

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
	"testing"

	"github.com/cleave-project/cleave/agent/guest"
	"github.com/cleave-project/cleave/engine/container/setup"
	"github.com/cleave-project/cleave/keeper"
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

// buildShared builds what all tests share. In a machine without a Go tool
// chain, like a virtual one with another kernel, CLEAVE_TEST_PREBUILT names a
// directory with cleave-agent, cleave-keeper and busybox.erofs instead.
func buildShared(dir string) error {
	if pre := os.Getenv("CLEAVE_TEST_PREBUILT"); pre != "" {
		shared.agent, shared.keeper = filepath.Join(pre, "cleave-agent"), filepath.Join(pre, "cleave-keeper")
		shared.busybox = filepath.Join(pre, "busybox.erofs")
		return nil
	}
	for name, to := range map[string]*string{"cleave-agent": &shared.agent, "cleave-keeper": &shared.keeper} {
		// Where there is no compiler they are built before.
		if bin := os.Getenv("CLEAVE_TEST_BIN"); bin != "" {
			*to = filepath.Join(bin, name)
			continue
		}
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
	return mkErofs(root, shared.busybox)
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
		n := string(bytes.TrimSpace(name))
		if n != "busybox" {
			if err := os.Symlink("busybox", filepath.Join(root, "bin", n)); err != nil {
				return err
			}
		}
	}
	passwd := "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n"
	return os.WriteFile(filepath.Join(root, "etc/passwd"), []byte(passwd), 0o644)
}

func mkErofs(root, image string) error {
	if out, err := exec.Command("mkfs.erofs", "--all-root", image, root).CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.erofs: %w: %s (install erofs-utils)", err, out)
	}
	return nil
}

// newEngine is an engine with a keeper of its own.
func newEngine(t testing.TB) *Engine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("containers are started by root")
	}
	dir := t.TempDir()
	k, _, err := keeper.Ensure(context.Background(), filepath.Join(dir, "keeper.sock"), shared.keeper, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	var e *Engine
	t.Cleanup(func() {
		if e != nil {
			k, _ = e.book.Keeper() // a test may have replaced it
		}
		if err := k.Stop(context.Background()); err != nil {
			t.Error(err)
		}
		k.Close()
	})
	sum := sha256.Sum256([]byte(dir))
	e, err = New(Options{
		Run: filepath.Join(dir, "run"), LogDir: func(id string) string { return filepath.Join(dir, "log", id) },
		Scope: "t" + hex.EncodeToString(sum[:4]), Keeper: k, AgentBinary: shared.agent,
		Log: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		e.Destroy()
		e.Close()
	})
	return e
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", bytes.TrimSpace(p))
	return len(p), nil
}
