package control

import (
	"context"
	"net"
	"strings"
	"testing"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
)

// bootVM is an engine whose guests have a firmware and a screen.
type bootVM struct {
	*fakeVM
	state engine.BootState
	looks chan struct{} // gets each look
}

func (b *bootVM) Boot(context.Context, string) (engine.BootState, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case b.looks <- struct{}{}:
	default:
	}
	return b.state, nil
}

func (*bootVM) VNC(context.Context, string) (net.Conn, error) { return nil, nil }
func (*bootVM) Screenshot(context.Context, string) ([]byte, error) {
	return []byte("\x89PNG"), nil
}

func bootWorld(t *testing.T, state engine.BootState) (*world, *bootVM) {
	b := &bootVM{fakeVM: newVM(), state: state, looks: make(chan struct{}, 100)}
	return newWorld(t, b), b
}

// empty is a machine with nothing on its disk.
func empty(seconds int, change ...func(*api.InstanceSpec)) api.InstanceSpec {
	s := api.InstanceSpec{Kind: api.KindVM, Restart: api.RestartAlways}
	s.Machine.BootSeconds = &seconds
	for _, f := range change {
		f(&s)
	}
	return s
}

const nothing = "the firmware has found no bootable device"

func TestWhatBootsNothingIsStoppedWithItsLastScreen(t *testing.T) {
	w, b := bootWorld(t, engine.BootState{Failed: nothing})
	in := w.launch("a", empty(1))
	w.until(in.ID, "failed", func(in *api.Instance) bool { return in.Status.Phase == api.PhaseFailed })
	got := w.get("a")
	s := got.Status
	if !api.IsCode(s.Error, api.CodeTimeout) || !strings.Contains(s.Error.Message, nothing) || !strings.Contains(s.Error.Hint, "screenshot a --last") || s.Exit.Reason != reasonNoBoot || s.LastScreen == nil || got.Spec.Power != api.PowerStopped {
		t.Errorf("%+v, %v", s, s.Error)
	}
	if png, err := w.c.LastScreen(t.Context(), "", "a"); err != nil || string(png) != "\x89PNG" {
		t.Errorf("the screen: %q, %v", png, err)
	}
	if n := b.count(in.ID); n != 1 {
		t.Errorf("it was started %d times", n)
	}
	b.mu.Lock()
	if b.guests[in.ID] != nil || len(w.net.attached) > 0 {
		t.Errorf("left: %v, %v", b.guests[in.ID], w.net.attached)
	}
	b.mu.Unlock()
	// Whoever has put in a medium starts it again.
	b.set(func() { b.state = engine.BootState{Alive: true} })
	w.power("a", "start")
	if s := w.get("a").Status; s.Phase != api.PhaseRunning || s.Error != nil || s.LastScreen != nil {
		t.Errorf("started again: %+v", s)
	}
}

func TestAGuestOfWhichNothingCanBeToldIsLeftAlone(t *testing.T) {
	w, b := bootWorld(t, engine.BootState{})
	in := w.launch("a", empty(1))
	for range 3 { // looks, which come at 1, 2 and 4 seconds
		<-b.looks
	}
	if s := w.get("a").Status; s.Phase != api.PhaseRunning {
		t.Errorf("it is %s: %v", s.Phase, s.Error)
	}
	_, err := w.c.LastScreen(t.Context(), "", "a")
	denied(t, "a screen that nobody kept", err, api.CodeNotFound, "screenshot a")
	// A new daemon goes on looking.
	b.set(func() { b.state = engine.BootState{Failed: nothing} })
	w.restart()
	w.until(in.ID, "failed", func(in *api.Instance) bool { return in.Status.Phase == api.PhaseFailed })
}

func TestBootMayTakeForEver(t *testing.T) {
	w, _ := bootWorld(t, engine.BootState{Failed: nothing})
	w.launch("never", empty(0))
	w.launch("image", vm())
	in := w.launch("soon", empty(1))
	w.until(in.ID, "failed", func(in *api.Instance) bool { return in.Status.Phase == api.PhaseFailed })
	for _, name := range []string{"never", "image"} {
		if s := w.get(name).Status; s.Phase != api.PhaseRunning {
			t.Errorf("%s is %s", name, s.Phase)
		}
	}
	_, err := w.c.CreateInstance(t.Context(), &api.Instance{Meta: api.Meta{Name: "x"}, Spec: vm(func(s *api.InstanceSpec) { s.Machine.BootSeconds = new(int) })}, false)
	denied(t, "an image", err, api.CodeUnsupported, "boot a disk")
}

func TestStopSaysWhomItWaitsFor(t *testing.T) {
	w, b := bootWorld(t, engine.BootState{Alive: true})
	in := w.launch("a", empty(0))
	op, err := w.c.PowerInstance(t.Context(), "", "a", PowerRequest{Action: "stop"})
	if err != nil {
		t.Fatal(err)
	}
	for op.Step == "" || op.Step == "queued" {
		if op, err = w.c.WaitOperation(t.Context(), op.ID, op.Changes); err != nil {
			t.Fatal(err)
		}
	}
	if !strings.Contains(op.Step, "power button") || !strings.Contains(op.Step, "stop --force a") {
		t.Errorf("it says %q", op.Step)
	}
	b.end(in.ID, 0)
	w.finish(op, nil)
	// Where nobody could answer, it doesn't wait.
	b.set(func() { b.state = engine.BootState{Failed: nothing} })
	w.power("a", "start")
	if op := w.finish(w.c.PowerInstance(t.Context(), "", "a", PowerRequest{Action: "stop"})); op.Error != nil {
		t.Error(op.Error)
	}
	if x := w.get("a").Status.Exit; x == nil || x.Signal != "SIGKILL" {
		t.Errorf("it ended with %+v", x)
	}
}
