package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cleave-project/cleave/e2e/stockhost"
)

// Kernels come from the distribution and stay where they were unpacked.
const (
	kernelCache   = "/var/cache/cleave-test"
	kernelPackage = "linux-image-cloud-amd64" // CLEAVE_TEST_KERNEL names another
)

// stockTests are those that run in the stock host, by their package: what
// depends on the kernel, without what only takes long under emulation.
var stockTests = []struct {
	pkg   string
	tests []string
}{
	{"e2e", []string{
		"TestDoctorFindsAllOnCgroupV2", "TestFirstSteps", "TestLimitsHold", "TestDevicesAreRefused",
		"TestSystemGuestOwnsItsCgroups", "TestDaemonMayDieAtAnyTime", "TestKeeperMayDie", "TestHostileGuestsAreHeld",
	}},
	{"keeper", []string{"TestNextKeeperTakesOverEverything", "TestAdoptFindsGuestWhenKeeperAndHolderAreDead", "TestStartIsBornInV2Cgroup"}},
	{"engine/container", []string{
		"TestConformance", "TestGuestCannotRaiseItsLimits", "TestDevicesOfTheHostAreOutOfReach",
		"TestReadOnlyVolumeStaysSoForRootWithAllRights", "TestStartThatFailsLeavesNothing", "TestNetworkIsConfiguredFromInside",
	}},
}

const stockSkipped = "TestFirstSteps/copy_100_MB_both_ways"

// stockPrograms are what Cleave needs of a host, and what its tests need.
var stockPrograms = []string{"mkfs.btrfs", "mkfs.ext4", "mkfs.erofs", "nft", "ip"}

// TestStockKernelWithCgroupV2 runs tests of this package on a host as users
// have them: a distribution's kernel, of some years ago, with its modules and
// with cgroup v2 alone.
func TestStockKernelWithCgroupV2(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a host under emulation")
	}
	spec := stockSpec(t)
	results := &bytes.Buffer{}
	begin := time.Now()
	status, err := stockRun(t, spec, results)
	if errors.Is(err, stockhost.ErrNoStatus) {
		// An emulated machine may hang before its first process.
		t.Logf("once more after %s: %v", time.Since(begin), err)
		status, err = stockRun(t, spec, results)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, tail(results.Bytes(), 8000))
	}
	want := 0
	for _, p := range stockTests {
		want += len(p.tests)
	}
	passed := regexp.MustCompile(`(?m)^--- PASS: `).FindAllString(results.String(), -1)
	if status != 0 || len(passed) != want {
		t.Errorf("status %d, %d of %d tests passed:\n%s", status, len(passed), want, tail(results.Bytes(), 20000))
	}
	for _, line := range regexp.MustCompile(`(?m)^ *--- .*`).FindAllString(results.String(), -1) {
		t.Log(line)
	}
	t.Logf("kernel %s: %s with the boot", spec.Kernel.Release, time.Since(begin).Round(time.Second))
}

// stockSilence is how long the host may say nothing before it counts as hung.
// How long all of it takes is up to the machine that plays it.
const stockSilence = 6 * time.Minute

func stockRun(t *testing.T, spec *stockhost.Spec, results *bytes.Buffer) (int, error) {
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	hung := time.AfterFunc(stockSilence, func() { cancel(fmt.Errorf("it said nothing for %s", stockSilence)) })
	defer hung.Stop()
	results.Reset()
	spec.Output = writerFunc(func(p []byte) (int, error) {
		hung.Reset(stockSilence)
		if testing.Verbose() {
			_, _ = os.Stdout.Write(p)
		}
		return results.Write(p)
	})
	status, err := stockhost.Run(ctx, t.TempDir(), spec)
	if err != nil {
		err = errors.Join(err, context.Cause(ctx))
	}
	return status, err
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// stockSpec gathers what the host is made of.
func stockSpec(t *testing.T) *stockhost.Spec {
	t.Helper()
	if _, err := exec.LookPath(stockhost.Emulator); err != nil {
		t.Skipf("needs an emulator: %v (install qemu-system-x86)", err)
	}
	bin, err := filepath.Abs("../bin")
	if err != nil {
		t.Fatal(err)
	}
	spec := &stockhost.Spec{Busybox: filepath.Join(bin, "busybox"), Files: map[string]string{}}
	for _, name := range []string{"cleave", "cleaved", "cleave-agent", "cleave-keeper", "busybox"} {
		spec.Files["cleave/bin/"+name] = filepath.Join(bin, name)
	}
	for _, name := range stockPrograms {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Skipf("needs a program to put on the host: %v", err)
		}
		spec.Files["usr/sbin/"+name] = path
	}
	pkg := kernelPackage
	if other := os.Getenv("CLEAVE_TEST_KERNEL"); other != "" {
		pkg = other
	}
	if spec.Kernel, err = stockhost.FetchKernel(t.Context(), kernelCache, pkg, spec.Busybox); err != nil {
		t.Skipf("needs a stock kernel: %v", err)
	}
	spec.Command = "export CLEAVE_TEST_BIN=/cleave/bin; failed=0\n"
	for _, p := range stockTests {
		// Static: the host has no C library but what programs bring along.
		binary := filepath.Join(t.TempDir(), filepath.Base(p.pkg)+".test")
		build := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", binary, "../"+p.pkg)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build the tests for the host: %v\n%s", err, out)
		}
		inside := filepath.Join("cleave", p.pkg, filepath.Base(binary))
		spec.Files[inside] = binary
		spec.Command += fmt.Sprintf("cd /%s && /%s -test.v -test.run '^(%s)$' -test.skip '%s' || failed=1\n", filepath.Dir(inside), inside, strings.Join(p.tests, "|"), stockSkipped)
	}
	spec.Command += "[ $failed = 0 ]"
	return spec
}
