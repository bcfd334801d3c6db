package control

import (
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
)

func TestStopForTheHostIsRecordedAndAutostartComesBack(t *testing.T) {
	w := newWorld(t)
	auto := w.launch("auto", spec(func(s *api.InstanceSpec) { s.Autostart = true }))
	plain := w.launch("plain", spec())
	brief := w.launch("brief", spec(func(s *api.InstanceSpec) { s.Ephemeral = true }))
	stubborn := w.launch("stubborn", spec())
	for _, in := range []*api.Instance{auto, plain, brief} {
		w.eng.polite[in.ID] = true
	}
	w.c.StopAll(t.Context(), 200*time.Millisecond)
	for id, want := range map[string]api.ExitStatus{auto.ID: {Code: 143, Signal: "SIGTERM"}, plain.ID: {Code: 143, Signal: "SIGTERM"}, stubborn.ID: {Code: 137, Signal: "SIGKILL"}} {
		s := w.c.instances.ByID(id).Status
		if s.Phase != api.PhaseStopped || s.Exit == nil || *s.Exit != want || len(s.Lost) > 0 || s.PID != 0 {
			t.Errorf("%s: %+v", id, s)
		}
	}
	if err := w.c.TakeDown(t.Context()); err != nil {
		t.Error(err)
	}
	w.restart()
	w.until(auto.ID, "running again", func(in *api.Instance) bool { return in.Status.Phase == api.PhaseRunning })
	w.until(brief.ID, "deleted", func(in *api.Instance) bool { return in == nil })
	for _, id := range []string{plain.ID, stubborn.ID} {
		if in := w.c.instances.ByID(id); in.Status.Phase != api.PhaseStopped || in.Spec.Power != api.PowerStopped {
			t.Errorf("%s: %+v", in.Name, in.Status)
		}
	}
}
