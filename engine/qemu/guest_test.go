package qemu

import (
	"context"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine/enginetest"
)

// TestStandardStreamsAreTheEntryPointsOwn lets nothing of a healthy boot into
// them.
func TestStandardStreamsAreTheEntryPointsOwn(t *testing.T) {
	e := newEngine(t)
	spec := imageSpec(t, "echo out; sleep 1; echo oops >&2; exit 3")
	enginetest.Start(t, e, spec)
	if st := enginetest.WaitExit(t, e, spec.ID); st != (api.ExitStatus{Code: 3, Reason: "exit"}) || enginetest.Log(t, e, spec.ID) != "out\noops\n" {
		t.Errorf("it ended as %+v\n%s", st, enginetest.Log(t, e, spec.ID))
	}
}

// TestPanicIsToldApart has the kernel reset the machine, which ends it.
func TestPanicIsToldApart(t *testing.T) {
	e := newEngine(t)
	spec := imageSpec(t, "echo c > /proc/sysrq-trigger; sleep 100")
	enginetest.Start(t, e, spec)
	if st := enginetest.WaitExit(t, e, spec.ID); st.Reason != "panic" || !strings.Contains(enginetest.Log(t, e, spec.ID), "Kernel panic - not syncing") {
		t.Errorf("it ended as %+v\n%s", st, enginetest.Log(t, e, spec.ID))
	}
}

// TestMemoryComesAndGoes moves the balloon.
func TestMemoryComesAndGoes(t *testing.T) {
	e := newEngine(t)
	spec := imageSpec(t, "while :; do sleep 1; done")
	enginetest.Start(t, e, spec)
	_, c, _, err := e.guest(t.Context(), spec.ID)
	if err != nil {
		t.Fatal(err)
	}
	has := func() api.Bytes {
		n, err := c.BalloonSize(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return api.Bytes(n)
	}
	free := func() int {
		n, _ := strconv.Atoi(strings.Fields(run(t, e, spec.ID, "grep MemFree /proc/meminfo"))[1])
		return n >> 10
	}
	before := free()
	less := spec.Resources
	less.Memory = 160 * api.MiB
	if err := e.Update(t.Context(), spec.ID, less, spec.Root.Dir); err != nil {
		t.Fatal(err)
	}
	if has() != less.Memory || free() > before-50 {
		t.Errorf("the guest has %s, and %d MiB free of %d", has(), free(), before)
	}
	less.Memory = 0
	if err := e.Update(t.Context(), spec.ID, less, spec.Root.Dir); err != nil {
		t.Fatal(err)
	}
	wait(t, func() string {
		if has() == spec.Machine.Memory {
			return "back"
		}
		return ""
	})
	less.Memory = api.GiB
	if err := e.Update(t.Context(), spec.ID, less, spec.Root.Dir); !api.IsCode(err, api.CodeConflict) {
		t.Errorf("more than it was started with gives %v", err)
	}
	if runtime.NumCPU() < 2 {
		return
	}
	less.Memory, less.CPUs = 0, 2
	if err := e.Update(t.Context(), spec.ID, less, spec.Root.Dir); !api.IsCode(err, api.CodeUnsupported) {
		t.Errorf("more CPUs give %v", err)
	}
}

func TestKernelThatInsistsOnSignaturesBoots(t *testing.T) {
	e := newEngine(t)
	spec := imageSpec(t, "cat /sys/module/module/parameters/sig_enforce; cat /proc/sys/kernel/tainted")
	spec.Machine.Kernel.Args = "module.sig_enforce=1"
	enginetest.Start(t, e, spec)
	if st := enginetest.WaitExit(t, e, spec.ID); st != (api.ExitStatus{Reason: "exit"}) || enginetest.Log(t, e, spec.ID) != "Y\n0\n" {
		t.Errorf("it ended as %+v\n%s", st, enginetest.Log(t, e, spec.ID))
	}
}

// TestKernelThatPanicsBeforeTheEntryPointFailsTheStart at once, with its words.
func TestKernelThatPanicsBeforeTheEntryPointFailsTheStart(t *testing.T) {
	e := newEngine(t)
	spec := imageSpec(t, "exit 0")
	spec.Machine.Kernel.Args = "rdinit=/no-such-init root=/dev/none"
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	_, err := e.Start(ctx, spec)
	if err == nil || !strings.Contains(err.Error(), "panic") || ctx.Err() != nil {
		t.Errorf("starting gives %v", err)
	}
}
