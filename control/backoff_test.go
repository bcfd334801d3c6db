package control

import (
	"strings"
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
)

// spaced fails if attempts did not come the later, the more had failed.
func spaced(t *testing.T, at []time.Time) {
	t.Helper()
	for i := 1; i < len(at); i++ {
		if least, got := min(backoffFirst<<(i-1), backoffMost), at[i].Sub(at[i-1]); got < least {
			t.Errorf("attempt %d came %s after the one before, want at least %s", i, got, least)
		}
	}
}

var errBusy = api.Errorf(api.CodeBusy, "a mount is busy")

// cleanings waits until that many were tried since the first of them, and
// returns when.
func (w *world) cleanings(id string, first, n int) (at []time.Time) {
	w.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		w.eng.set(func() { at = w.eng.cleans[id][first:] })
		if len(at) >= n {
			return at
		}
		if time.Now().After(end) {
			w.t.Fatalf("tried %d times, want %d", len(at), n)
		}
	}
}

func TestFailedRemovalsAreSpacedAndSucceedInTheEnd(t *testing.T) {
	w := newWorld(t)
	in := w.launch("a", spec())
	w.deleting("a")
	first := len(w.cleanings(in.ID, 0, 1)) - 1 // the one by which the operation failed
	spaced(t, w.cleanings(in.ID, first, 4))
	if now, err := w.c.Instance("", "a"); err != nil || now.Status.Phase != api.PhaseDeleting || now.Status.Error == nil {
		t.Errorf("%v, %+v", err, now)
	}
	w.eng.set(func() { w.eng.failClean = nil })
	w.until(in.ID, "deleted", func(in *api.Instance) bool { return in == nil })
	w.clean()
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	if len(w.c.restarts) > 0 {
		t.Error("its failures are remembered")
	}
}

// late lets the next attempt of what failed come in an hour.
func (w *world) late(id string) {
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	b := w.c.restarts[id]
	b.timer.Stop()
	b.until = time.Now().Add(time.Hour)
}

func TestFailedRemovalIsTriedAtOnce(t *testing.T) {
	for name, try := range map[string]func(*world){
		"when a user asks": func(w *world) {
			if op := w.finish(w.c.DeleteInstance(w.t.Context(), "", "a", false, 0)); op.State != api.OperationDone {
				w.t.Errorf("delete: %v", op.Error)
			}
		},
		"when the daemon starts": (*world).restart,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			in := w.launch("a", spec())
			w.deleting("a")
			w.late(in.ID)
			w.eng.set(func() { w.eng.failClean = nil })
			try(w)
			w.until(in.ID, "deleted", func(in *api.Instance) bool { return in == nil })
			w.clean()
		})
	}
}

func TestCreationThatCantBeUndoneIsRememberedAndRemovedLater(t *testing.T) {
	w := newWorld(t)
	w.eng.failStart, w.eng.failClean = api.Errorf(api.CodeNotFound, "entry point not found"), errBusy
	op := w.finish(w.c.CreateInstance(t.Context(), &api.Instance{Meta: api.Meta{Name: "a"}, Spec: spec()}, true))
	if op.State != api.OperationFailed || op.Error.Code != api.CodeNotFound {
		t.Errorf("launch: %+v", op)
	}
	in, err := w.c.Instance("", "a")
	if err != nil {
		t.Fatal(err)
	}
	if in.Status.Phase != api.PhaseDeleting || in.Deleting == nil || in.Status.Error == nil ||
		in.Status.Error.Code != api.CodeBusy || !strings.Contains(in.Status.Error.Message, "entry point not found") {
		t.Errorf("%+v", in.Status)
	}
	w.pool.mu.Lock()
	if len(w.pool.volumes) != 1 {
		t.Errorf("volumes: %v", w.pool.volumes)
	}
	w.pool.mu.Unlock()
	w.eng.set(func() { w.eng.failClean = nil })
	w.until(in.ID, "deleted", func(in *api.Instance) bool { return in == nil })
	w.clean()
}

// What a guest left at its end, and a stop that fails, are no reason to try
// without a pause either.
func TestOtherFailuresAreSpacedToo(t *testing.T) {
	t.Run("cleaning up", func(t *testing.T) {
		w := newWorld(t)
		in := w.launch("a", spec())
		w.eng.set(func() { w.eng.failClean = errBusy })
		w.eng.end(in.ID, 3)
		spaced(t, w.cleanings(in.ID, 0, 4))
		w.eng.set(func() { w.eng.failClean = nil })
		w.until(in.ID, "stopped", func(in *api.Instance) bool { return in.Status.Phase == api.PhaseStopped && in.Status.Exit.Code == 3 })
	})
	t.Run("stopping, until the guest ends by itself", func(t *testing.T) {
		w := newWorld(t)
		in := w.launch("a", spec())
		w.eng.set(func() { w.eng.failSignal = errBusy })
		if op := w.finish(w.c.PowerInstance(t.Context(), "", "a", PowerRequest{Action: "stop"})); op.State != api.OperationFailed {
			t.Fatalf("stop: %+v", op)
		}
		w.late(in.ID)
		w.eng.end(in.ID, 0)
		w.until(in.ID, "stopped", func(in *api.Instance) bool { return in.Status.Phase == api.PhaseStopped })
	})
}
