package container

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine/enginetest"
)

func TestTenThousandMountsAreCleanedUp(t *testing.T) {
	e := newEngine(t)
	checkLeaks(t, e)
	spec := withAdmin(guestSpec(t, `i=0; mkdir /m; while [ $i -lt 10000 ]; do mount -t tmpfs none /m || break; i=$((i+1)); done; echo made $i; exec sleep 1000`))
	spec.Resources.Memory = 512 * api.MiB
	enginetest.Start(t, e, spec)
	enginetest.WaitLog(t, e, spec.ID, "made")
	t.Log(strings.TrimSpace(enginetest.Log(t, e, spec.ID)))
	begin := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := e.Clean(ctx, spec.ID); err != nil {
		t.Fatal(err)
	}
	t.Logf("cleaned in %v", time.Since(begin))
}

func TestForkBombAndStubbornProcessesAreCleanedUp(t *testing.T) {
	e := newEngine(t)
	checkLeaks(t, e)
	spec := guestSpec(t, `trap '' TERM HUP INT; bomb() { (trap '' TERM; while :; do bomb & done) & bomb & }; echo ready; bomb; while :; do sleep 1; done`)
	spec.Resources = api.Resources{Memory: 512 * api.MiB}
	enginetest.Start(t, e, spec)
	enginetest.WaitLog(t, e, spec.ID, "ready")
	time.Sleep(300 * time.Millisecond) // let it grow; it has no end to wait for
	st, err := e.Stats(t.Context(), spec.ID)
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := e.Clean(ctx, spec.ID); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d processes cleaned in %v", st.PIDs, time.Since(begin))
}

func TestPausedGuestIsCleanedUp(t *testing.T) {
	e := newEngine(t)
	checkLeaks(t, e)
	spec := guestSpec(t, `while :; do :; done`)
	enginetest.Start(t, e, spec)
	if err := e.Pause(t.Context(), spec.ID); err != nil {
		t.Fatal(err)
	}
	if err := e.Clean(t.Context(), spec.ID); err != nil {
		t.Fatal(err)
	}
}

func TestSharedMemoryAndDevAreBounded(t *testing.T) {
	e := newEngine(t)
	checkLeaks(t, e)
	spec := guestSpec(t, `dd if=/dev/zero of=/dev/shm/f bs=1M count=100 2>&1 | grep -c 'No space'; dd if=/dev/zero of=/dev/f bs=1M count=100 2>&1 | grep -c 'No space'`)
	spec.ShmSize = 4 * api.MiB
	if out, _ := runGuest(t, e, spec); out != "1\n1\n" {
		t.Errorf("output %q", out)
	}
}

// The kernel has one bound for the terminals of all guests, and one that a
// devpts shows.
func TestTerminalsAreBounded(t *testing.T) {
	e := newEngine(t)
	checkLeaks(t, e)
	if out, _ := runGuest(t, e, guestSpec(t, `grep ' /dev/pts devpts ' /proc/mounts`)); !strings.Contains(out, ",max=1024") {
		t.Errorf("output %q", out)
	}
}

func TestStartThatFailsLeavesNothing(t *testing.T) {
	e := newEngine(t)
	checkLeaks(t, e)
	failing := func(context.Context, int) error { return api.Errorf(api.CodeNoSpace, "no port is free") }
	spec := guestSpec(t, "true")
	spec.AttachNet = failing
	if _, err := e.Start(t.Context(), spec); !api.IsCode(err, api.CodeNoSpace) {
		t.Errorf("error %v", err)
	}
	spec = guestSpec(t, "true")
	spec.Image.EROFS = "/nowhere"
	spec.Image.Digest = "sha256:none"
	if _, err := e.Start(t.Context(), spec); err == nil {
		t.Error("no error")
	}
	ctx, cancel := context.WithCancel(t.Context())
	spec = guestSpec(t, "true")
	spec.AttachNet = func(context.Context, int) error { cancel(); return nil }
	if _, err := e.Start(ctx, spec); err == nil {
		t.Error("a cancelled start succeeded")
	}
}
