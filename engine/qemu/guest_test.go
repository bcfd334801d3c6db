package qemu

import (
	"strings"
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
)

// TestStandardStreamsAreTheEntryPointsOwn lets nothing of a healthy boot into
// them.
func TestStandardStreamsAreTheEntryPointsOwn(t *testing.T) {
	e := newEngine(t)
	spec := imageSpec(t, "echo out; sleep 1; echo oops >&2; exit 3")
	startGuest(t, e, spec)
	if st := waitExit(t, e, spec.ID); st != (api.ExitStatus{Code: 3, Reason: "exit"}) || guestLog(e, spec.ID) != "out\noops\n" {
		t.Errorf("it ended as %+v\n%s", st, guestLog(e, spec.ID))
	}
}

// TestPanicIsToldApart has the kernel reset the machine, and boot find what
// was.
func TestPanicIsToldApart(t *testing.T) {
	e := newEngine(t)
	spec := imageSpec(t, "echo c > /proc/sysrq-trigger; sleep 100")
	startGuest(t, e, spec)
	if st := waitExit(t, e, spec.ID); st.Reason != "panic" || !strings.Contains(guestLog(e, spec.ID), "Kernel panic - not syncing") {
		t.Errorf("it ended as %+v\n%s", st, guestLog(e, spec.ID))
	}
}

// TestMemoryComesAndGoes moves the balloon.
func TestMemoryComesAndGoes(t *testing.T) {
	e := newEngine(t)
	spec := imageSpec(t, "while :; do sleep 1; done")
	startGuest(t, e, spec)
	total := func() string { return strings.Fields(run(t, e, spec.ID, "grep MemTotal /proc/meminfo"))[1] }
	before := total()
	less := spec.Resources
	less.Memory = 160 * api.MiB
	start := time.Now()
	if err := e.Update(t.Context(), spec.ID, less, spec.Root.Dir); err != nil {
		t.Fatal(err)
	}
	t.Logf("in %v from %s to %s kB", time.Since(start), before, total())
	if now := total(); len(now) == len(before) && now >= before {
		t.Errorf("the guest had %s kB, and has %s", before, now)
	}
	less.Memory = 0
	if err := e.Update(t.Context(), spec.ID, less, spec.Root.Dir); err != nil {
		t.Fatal(err)
	}
	wait(t, func() string {
		if total() == before {
			return "back"
		}
		return ""
	})
	less.Memory = api.GiB
	if err := e.Update(t.Context(), spec.ID, less, spec.Root.Dir); !api.IsCode(err, api.CodeUnsupported) {
		t.Errorf("more than it was started with gives %v", err)
	}
	less.Memory, less.CPUs = 0, 3
	if err := e.Update(t.Context(), spec.ID, less, spec.Root.Dir); !api.IsCode(err, api.CodeUnsupported) {
		t.Errorf("more CPUs give %v", err)
	}
}

func TestKernelThatInsistsOnSignaturesBoots(t *testing.T) {
	e := newEngine(t)
	spec := imageSpec(t, "cat /sys/module/module/parameters/sig_enforce; cat /proc/sys/kernel/tainted")
	spec.Machine.Kernel.Args = "module.sig_enforce=1"
	startGuest(t, e, spec)
	if st := waitExit(t, e, spec.ID); st != (api.ExitStatus{Reason: "exit"}) || guestLog(e, spec.ID) != "Y\n0\n" {
		t.Errorf("it ended as %+v\n%s", st, guestLog(e, spec.ID))
	}
}
