package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
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

// stockTests are those of this package that run in the stock host: what
// depends on the kernel, without what only takes long under emulation.
var (
	stockTests   = []string{"TestFirstSteps", "TestDaemonMayDieAtAnyTime", "TestKeeperMayDie", "TestLimitsHold", "TestDevicesAreRefused", "TestSystemGuestOwnsItsCgroups", "TestDoctorFindsAllOnCgroupV2"}
	stockSkipped = "TestFirstSteps/copy_100_MB_both_ways"
)

// stockPrograms are what Cleave needs of a host, and what the tests ask for
// what is left on it.
var stockPrograms = []string{"mkfs.btrfs", "mkfs.ext4", "nft"}

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
	passed := regexp.MustCompile(`(?m)^--- PASS: (\S+)`).FindAllStringSubmatch(results.String(), -1)
	if status != 0 || len(passed) != len(stockTests) {
		t.Errorf("status %d, %d of %d tests passed:\n%s", status, len(passed), len(stockTests), tail(results.Bytes(), 20000))
	}
	for _, line := range regexp.MustCompile(`(?m)^ *--- .*`).FindAllString(results.String(), -1) {
		t.Log(line)
	}
	t.Logf("kernel %s: %s with the boot", spec.Kernel.Release, time.Since(begin).Round(time.Second))
}

func stockRun(t *testing.T, spec *stockhost.Spec, results *bytes.Buffer) (int, error) {
	// Twice what it takes on two busy processors.
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	results.Reset()
	spec.Output = results
	if testing.Verbose() {
		spec.Output = io.MultiWriter(results, os.Stdout)
	}
	return stockhost.Run(ctx, t.TempDir(), spec)
}

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
	// Static: the host has no C library but what programs bring along.
	self := filepath.Join(t.TempDir(), "e2e.test")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", self, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the tests for the host: %v\n%s", err, out)
	}
	spec.Files["cleave/e2e/e2e.test"] = self
	spec.Command = fmt.Sprintf("cd /cleave/e2e && ./e2e.test -test.v -test.failfast -test.run '^(%s)$' -test.skip '%s'", strings.Join(stockTests, "|"), stockSkipped)
	return spec
}
