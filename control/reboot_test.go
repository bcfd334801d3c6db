package control

import (
	"testing"

	"github.com/cleave-project/cleave/api"
)

func TestSystemGuestThatRebootsRunsAgain(t *testing.T) {
	w := newWorld(t)
	in := w.launch("a", spec(func(s *api.InstanceSpec) { s.Init, s.Ephemeral = new(true), true }))
	for n := range 2 {
		w.eng.mu.Lock()
		w.eng.finish(in.ID, api.ExitStatus{Code: 129, Signal: "SIGHUP"})
		w.eng.mu.Unlock()
		w.until(in.ID, "running again", func(in *api.Instance) bool {
			return w.eng.count(in.ID) == n+2 && in.Status.Phase == api.PhaseRunning && in.Status.Restarts == 0
		})
	}
	w.eng.end(in.ID, 0)
	w.until(in.ID, "deleted", func(in *api.Instance) bool { return in == nil })
	w.clean()
}
