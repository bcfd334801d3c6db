package vmm

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
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/keeper"
	"github.com/cleave-project/cleave/kernel/kerneltest"
	"github.com/cleave-project/cleave/lab"
)

// These tests run machines, so they run in a host of the lab, by a program of
// their own there: TestInALabHost is outside, the others are inside.

// parts are what the host is given, below /lab.
const (
	partAgent   = "bin/cleave-agent"
	partKeeper  = "bin/cleave-keeper"
	partMonitor = "bin/cleave-vmm"
	partImage   = "image.erofs"
	partKernel  = "kernel"
	partInitrd  = "initrd"
	partModules = "modules.erofs"
)

func part(name string) string { return "/lab/" + name }

// inside are the tests that run in the host. TestConformance, of seven minutes,
// is run by name: CLEAVE_TEST_ONLY=TestConformance.
var inside = []string{
	"TestKernelPanicIsTold", "TestDevicesComeAndGo", "TestRootDiskGrowsWhileTheGuestRuns", "TestMonitorIsShutIn", "TestSystemIsInspected",
}

func TestInALabHost(t *testing.T) {
	if lab.InsideName() != "" {
		t.Skip("it is the other half")
	}
	if testing.Short() {
		t.Skip("boots a host under emulation")
	}
	needs := []lab.Need{lab.KVM, lab.CPUs(2), lab.Memory(1536 << 20)}
	for name, path := range buildParts(t) {
		needs = append(needs, lab.File(name, path))
	}
	h := lab.Hosts(t, 1, needs...)[0]
	begin := time.Now()
	names := inside
	if only := os.Getenv("CLEAVE_TEST_ONLY"); only != "" {
		names = strings.Split(only, ",")
	}
	r := lab.RunBinary(t, h, "/lab/test", []string{"-test.run", "^(" + strings.Join(names, "|") + ")$"})
	if r.Status != 0 || r.Passed != len(names) {
		t.Errorf("status %d, %d of %d tests passed, %d were skipped", r.Status, r.Passed, len(names), r.Skipped)
	}
	t.Logf("%v without the host's boot", time.Since(begin).Round(time.Second))
}

// buildParts makes the parts.
func buildParts(t *testing.T) map[string]string {
	t.Helper()
	dir := t.TempDir()
	parts := map[string]string{}
	for _, name := range []string{partAgent, partKeeper, partMonitor} {
		parts[name] = filepath.Join(dir, filepath.Base(name))
		c := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", parts[name], "github.com/cleave-project/cleave/cmd/"+filepath.Base(name))
		c.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v: %s", name, err, out)
		}
	}
	parts[partImage] = filepath.Join(dir, partImage)
	busyboxImage(t, filepath.Join(dir, "root"), parts[partImage])
	s, err := kerneltest.Stock(t.Context(), filepath.Join(dir, "kernels"), func(string) (string, error) { return parts[partAgent], nil })
	if err != nil {
		t.Skipf("needs a stock kernel: %v", err)
	}
	b, err := s.Boot(t.Context(), api.KindVM, "amd64", "")
	if err != nil {
		t.Fatal(err)
	}
	parts[partKernel], parts[partInitrd], parts[partModules] = b.Image, b.Initrd, b.Modules
	return parts
}

// busyboxImage makes an image of busybox alone.
func busyboxImage(t *testing.T, root, image string) {
	t.Helper()
	for _, d := range []string{"bin", "etc", "tmp", "var", "root", "proc", "sys", "dev"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skipf("%v (install busybox-static)", err)
	}
	out, err := exec.Command("/bin/busybox", "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	for name := range strings.FieldsSeq(string(out)) {
		if name != "busybox" {
			if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	passwd := "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n"
	for name, content := range map[string][]byte{"bin/busybox": b, "etc/passwd": []byte(passwd)} {
		if err := os.WriteFile(filepath.Join(root, name), content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("mkfs.erofs", "--all-root", image, root).CombinedOutput(); err != nil {
		t.Skipf("mkfs.erofs: %v: %s (install erofs-utils)", err, out)
	}
}

func hardware() *engine.Machine {
	return &engine.Machine{
		Arch: "amd64", CPUs: 1, Memory: 256 * api.MiB,
		Kernel: engine.Kernel{Name: "stock", Image: part(partKernel), Initrd: part(partInitrd), Modules: part(partModules), Version: stockVersion()},
	}
}

// stockVersion is the release of the guests' kernel, which is the host's.
func stockVersion() string {
	b, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func image() engine.Image {
	return engine.Image{Digest: "sha256:busybox", EROFS: part(partImage)}
}

// newEngine opens an engine with a keeper of its own, in a host of the lab.
func newEngine(t testing.TB) *Engine {
	t.Helper()
	e, _ := newEngineWith(t)
	return e
}

// newEngineWith returns the options, too.
func newEngineWith(t testing.TB) (*Engine, Options) {
	t.Helper()
	lab.Inside(t)
	dir := t.TempDir()
	for d := dir; d != "/"; d = filepath.Dir(d) { // monitors reopen disks
		if st, err := os.Stat(d); err == nil && st.Mode().Perm()&0o001 == 0 {
			_ = os.Chmod(d, st.Mode().Perm()|0o711)
		}
	}
	k, _, err := keeper.Ensure(context.Background(), filepath.Join(dir, "keeper.sock"), part(partKeeper), slog.New(slog.DiscardHandler))
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
	opts := Options{
		Run: filepath.Join(dir, "run"), LogDir: func(id string) string { return filepath.Join(dir, "log", id) },
		Scope: "t" + hex.EncodeToString(sum[:4]), Keeper: k, AgentBinary: part(partAgent), Binary: part(partMonitor),
		Log: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	}
	return open(t, opts), opts
}

func open(t testing.TB, o Options) *Engine {
	t.Helper()
	e, err := New(o)
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

var serial int

// newSpec is a guest that runs a script.
func newSpec(t testing.TB, script string) *engine.Spec {
	serial++
	return &engine.Spec{
		ID: fmt.Sprintf("guest%d", serial), Name: "machine", Hostname: "machine",
		Image: image(), Root: engine.Root{Dir: t.TempDir(), Size: 64 * api.MiB},
		Proc:    engine.Process{Args: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/bin"}},
		UIDBase: uint32(3<<24 + serial<<16), IDCount: 1 << 16, Machine: hardware(),
	}
}

func start(t testing.TB, e *Engine, spec *engine.Spec) *engine.Guest {
	t.Helper()
	g, err := e.Start(t.Context(), spec)
	t.Cleanup(func() {
		if err := e.Forget(context.Background(), spec.ID); err != nil {
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
