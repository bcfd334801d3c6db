package e2e

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/cleave-project/cleave/lab"
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

// TestStockKernelWithCgroupV2 runs tests of this package on a host as users
// have them: a distribution's kernel, of some years ago, with its modules and
// with cgroup v2 alone. CLEAVE_TEST_KERNEL names a package with another kernel.
func TestStockKernelWithCgroupV2(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a host under emulation")
	}
	needs := []lab.Need{lab.CPUs(2), lab.Memory(2 << 30), lab.Disk(12 << 30)}
	// Programs and tests lie to each other as they do here.
	for _, name := range []string{"cleave", "cleaved", "cleave-agent", "cleave-keeper", "busybox"} {
		needs = append(needs, lab.File("bin/"+name, filepath.Join("../bin", name)))
	}
	inside := func(pkg string) string { return pkg + "/" + filepath.Base(pkg) + ".test" }
	for _, p := range stockTests {
		binary, err := lab.BuildTest(t, "../"+p.pkg)
		if err != nil {
			t.Fatalf("build the tests for the host: %v", err)
		}
		needs = append(needs, lab.File(inside(p.pkg), binary))
	}
	h := lab.Hosts(t, 1, needs...)[0]
	for _, p := range stockTests {
		t.Run(p.pkg, func(t *testing.T) {
			args := []string{"-test.run", "^(" + strings.Join(p.tests, "|") + ")$", "-test.skip", stockSkipped}
			r := lab.RunBinary(t, h, "/lab/"+inside(p.pkg), args, "CLEAVE_TEST_BIN=/lab/bin")
			if r.Status != 0 || r.Passed != len(p.tests) {
				t.Errorf("status %d, %d of %d tests passed, %d were skipped", r.Status, r.Passed, len(p.tests), r.Skipped)
			}
		})
	}
}
