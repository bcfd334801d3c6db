package enginetest

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
	"strings"
	"testing"

	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/keeper"
)

// Build builds a program of this module in dir, as it is shipped.
func Build(dir, name string) (string, error) {
	to := filepath.Join(dir, name)
	c := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", to, "github.com/cleave-project/cleave/cmd/"+name)
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w: %s", name, err, out)
	}
	return to, nil
}

// Busybox makes an image in dir which is what Fixture.Image asks for.
func Busybox(dir string) (string, error) {
	root, image := filepath.Join(dir, "root"), filepath.Join(dir, "busybox.erofs")
	if err := BusyboxRoot(root); err != nil {
		return "", err
	}
	return image, Erofs(root, image)
}

// BusyboxRoot makes a root file system of busybox and its users alone.
func BusyboxRoot(root string) error {
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

// Erofs makes an image of a root file system.
func Erofs(root, image string) error {
	if out, err := exec.Command("mkfs.erofs", "--all-root", image, root).CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.erofs: %w: %s (install erofs-utils)", err, out)
	}
	return nil
}

// Options are those of an engine that lives in dir, with a keeper of its own
// which ends with the test, whichever keeper has taken its place meanwhile.
func Options(t testing.TB, dir, agentProgram, keeperProgram string) engine.Options {
	t.Helper()
	socket := filepath.Join(dir, "keeper.sock")
	k, _, err := keeper.Ensure(context.Background(), socket, keeperProgram, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		k.Close()
		last, err := keeper.Connect(context.Background(), socket)
		if err != nil {
			t.Error(err)
			return
		}
		if err := last.Stop(context.Background()); err != nil {
			t.Error(err)
		}
		last.Close()
	})
	sum := sha256.Sum256([]byte(dir))
	return engine.Options{
		Run: filepath.Join(dir, "run"), LogDir: func(id string) string { return filepath.Join(dir, "log", id) },
		Scope: "t" + hex.EncodeToString(sum[:4]), Keeper: k, AgentBinary: agentProgram,
		Log: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	}
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", bytes.TrimSpace(p))
	return len(p), nil
}

// Reachable is t.TempDir with all that leads to it open to other users: a
// monitor opens its disks as the user that it is.
func Reachable(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for d := dir; d != "/"; d = filepath.Dir(d) {
		if st, err := os.Stat(d); err == nil && st.Mode().Perm()&0o001 == 0 {
			_ = os.Chmod(d, st.Mode().Perm()|0o711)
		}
	}
	return dir
}
