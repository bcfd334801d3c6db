package vmm

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/enginetest"
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

// inside are the tests that run in the host, and shared the cases of the
// conformance suite that run with them: those in which this monitor has a part
// of its own. All cases, which take eight minutes of a quiet machine, are run
// by name: CLEAVE_TEST_ONLY=TestConformance.
var (
	inside = []string{
		"TestKernelPanicIsTold", "TestDevicesComeAndGo", "TestRootDiskGrowsWhileTheGuestRuns", "TestGuestRunsOnWhenTheDiskIsFull",
		"TestMonitorIsShutIn", "TestSystemIsInspected",
	}
	shared = []string{
		"TerminalIsOne", "PauseStopsAndResumeContinues", "GuestGoesOnFromItsSavedMemory", "LimitsChangeWhileRunning", "DisksTellWhatWasChanged",
	}
)

// TestMain is that of both halves.
func TestMain(m *testing.M) {
	if lab.InsideName() != "" {
		lab.HoldKVM()
	}
	os.Exit(m.Run())
}

func TestInALabHost(t *testing.T) {
	if lab.InsideName() != "" {
		t.Skip("this half runs outside of the lab's host")
	}
	if testing.Short() {
		t.Skip("-short: boots a host under emulation")
	}
	lab.Again(t, inALabHost)
}

func inALabHost(t testing.TB) {
	needs := []lab.Need{lab.KVM, lab.CPUs(2), lab.Memory(1536 << 20)}
	for name, path := range buildParts(t) {
		needs = append(needs, lab.File(name, path))
	}
	h := lab.Hosts(t, 1, needs...)[0]
	begin := time.Now()
	exactly := func(names []string) string { return "^(" + strings.Join(names, "|") + ")$" }
	pattern, count := exactly(inside)+"|^TestConformance$/"+exactly(shared), len(inside)+1
	if only := os.Getenv("CLEAVE_TEST_ONLY"); only != "" {
		names := strings.Split(only, ",")
		pattern, count = exactly(names), len(names)
	}
	r := lab.RunBinary(t, h, "/lab/test", []string{"-test.run", pattern})
	if r.Status != 0 || r.Passed != count {
		t.Errorf("status %d, %d of %d tests passed, %d were skipped", r.Status, r.Passed, count, r.Skipped)
	}
	t.Logf("%v without the host's boot", time.Since(begin).Round(time.Second))
}

// buildParts makes the parts.
func buildParts(t testing.TB) map[string]string {
	t.Helper()
	dir := t.TempDir()
	parts := map[string]string{}
	for _, name := range []string{partAgent, partKeeper, partMonitor} {
		program, err := enginetest.Build(dir, filepath.Base(name))
		if err != nil {
			t.Fatal(err)
		}
		parts[name] = program
	}
	busybox, err := enginetest.Busybox(dir)
	if err != nil {
		t.Fatal(err)
	}
	parts[partImage] = busybox
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
func newEngineWith(t testing.TB) (*Engine, engine.Options) {
	t.Helper()
	lab.Inside(t)
	traceShutdowns(t)
	opts := enginetest.Options(t, enginetest.Reachable(t), part(partAgent), part(partKeeper))
	return open(t, opts), opts
}

func open(t testing.TB, opts engine.Options) *Engine {
	t.Helper()
	e, err := New(part(partMonitor), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		e.Destroy()
		e.Close()
	})
	return e
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
