package machine

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine/machine/vitals"
	"github.com/cleave-project/cleave/keeper"
)

// How a machine ended (api.ExitStatus.Reason).
const (
	byExit     = "exit"
	byPowerOff = "poweroff"
	byPanic    = "panic"
	byCrash    = "crash"
	byKill     = "killed"
)

// killedName is a file in the runtime directory which says that it was us who
// ended the monitor.
const killedName = "killed"

// markKilled is called before the monitor is killed.
func (e *Engine) markKilled(id string) error {
	err := os.WriteFile(filepath.Join(e.book.Dir(id), killedName), nil, 0o600)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// status is how a guest ended whose monitor's end the keeper has seen. All
// that it goes by outlives the daemon.
func (e *Engine) status(g keeper.Guest) api.ExitStatus {
	e.drop(g.ID)
	s := g.Exit()
	if !g.ExitKnown {
		s.Code = -1
	}
	return e.ending(g.ID, s)
}

// ending is how a guest ended whose monitor's process ended like that.
func (e *Engine) ending(id string, process api.ExitStatus) api.ExitStatus {
	s := e.told(id, process)
	if s.Reason == byExit || s.Reason == byPowerOff {
		return s
	}
	if exists(filepath.Join(e.book.Dir(id), killedName)) {
		return api.ExitStatus{Code: 137, Signal: "SIGKILL", Reason: byKill}
	}
	if s.Reason != "" {
		return s
	}
	// What the monitor itself had to say.
	s = process
	switch {
	case s.Code < 0: // lost
	case s.Code > 0:
		s.Reason = byCrash
		s.OOMKilled = s.Code == 137 && e.cgroups.Group(id).OOMKills() > 0
	case e.working(id):
		// It ended in good order with the guest in the middle of its work.
		s = api.ExitStatus{Code: 255, Reason: byPanic}
	default:
		s.Reason = byPowerOff
	}
	return s
}

// told is how a guest ended as it said itself, or as its monitor knows; a zero
// Reason if nobody said anything.
func (e *Engine) told(id string, process api.ExitStatus) api.ExitStatus {
	r, err := e.book.Read(id)
	if err != nil || r.Machine == nil {
		return api.ExitStatus{Code: -1}
	}
	if !r.Machine.Firmware {
		if s, err := readStatus(e.book.Dir(id)); err == nil && s.Phase == vitals.PhaseEnded {
			if s.Exit.Reason == "" {
				s.Exit.Reason = byExit
				if r.System {
					s.Exit.Reason = byPowerOff
				}
			}
			return s.Exit
		}
	}
	g := e.guest(r)
	g.Exit = process
	if s := e.monitor.Ended(g); s.Reason != "" {
		return s
	}
	if r.Machine.Firmware {
		return api.ExitStatus{Code: -1}
	}
	if s, err := readStatus(e.book.Dir(id)); err == nil && s.Phase == vitals.PhaseEnding {
		return api.ExitStatus{Reason: byPowerOff}
	}
	return api.ExitStatus{Code: -1}
}

// working tells whether an application had been executed and our PID 1 has
// not said that it ends. The init of a system needs no word of ours to power
// it off.
func (e *Engine) working(id string) bool {
	r, err := e.book.Read(id)
	if err != nil || r.System {
		return false
	}
	s, err := readStatus(e.book.Dir(id))
	return err == nil && s.Phase == vitals.PhaseRunning
}
