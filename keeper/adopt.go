package keeper

import (
	"github.com/cleave-project/cleave/api"
)

// adopt takes over a guest that an earlier keeper started. One that has ended
// meanwhile is taken too, as far as its end can be known.
func (s *server) adopt(r AdoptRequest) (Guest, error) {
	if r.ID == "" || r.PID <= 0 {
		return Guest{}, api.Errorf(api.CodeInvalid, "adopt guest %q with pid %d: both are needed", r.ID, r.PID)
	}
	if g, err := s.find(r.ID); err == nil {
		info := g.snapshot()
		if info.PID == r.PID && info.StartTime == r.StartTime {
			return info, nil
		}
		return Guest{}, api.Errorf(api.CodeExists, "adopt guest %s with pid %d: the keeper has one with pid %d", r.ID, r.PID, info.PID)
	}
	if err := s.reserve(r.ID); err != nil {
		return Guest{}, err
	}
	g, err := s.takeOver(r)
	s.settle(r.ID, g)
	if err != nil {
		return Guest{}, err
	}
	if err := s.resume(g); err != nil {
		return Guest{}, err
	}
	return g.snapshot(), nil
}

// takeOver finds what is left of a guest by its names.
func (s *server) takeOver(r AdoptRequest) (*guest, error) {
	log, err := newLogWriter(r.LogDir, logLimit)
	if err != nil {
		return nil, api.Errorf(api.CodeInternal, "adopt guest %s: open its log: %w", r.ID, err)
	}
	g := &guest{server: s, dir: r.Dir, logDir: r.LogDir, log: log, stdio: noStdio(), pidfd: -1}
	g.info = Guest{ID: r.ID, PID: r.PID, StartTime: r.StartTime, Started: startedAt(r.StartTime).UTC(), Terminal: r.Terminal}
	if r.Terminal {
		g.info.Lost = append(g.info.Lost, "terminal")
	} else {
		g.stdio, g.info.Lost = reopenStdio(r.Dir)
	}
	g.pidfd, err = openPidfd(r.PID, r.StartTime)
	if err != nil {
		g.pidfd = -1 // it has ended
	}
	if err := g.makeInput(); err != nil {
		g.discard()
		return nil, api.Errorf(api.CodeInternal, "adopt guest %s: %w", r.ID, err)
	}
	return g, nil
}

// resume begins to look after a guest that is not new. If its process has
// ended, the guest ends here.
func (s *server) resume(g *guest) error {
	if g.pidfd < 0 {
		g.sources()
		g.finish(outcome{code: -1})
		return nil
	}
	if !alive(g.pidfd) {
		g.sources()
		g.ended()
		return nil
	}
	if err := g.watchAll(); err != nil {
		return api.Errorf(api.CodeNoResources, "adopt guest %s: watch its descriptors: %w", g.info.ID, err)
	}
	s.store.save(g)
	return nil
}
