package qemu

import (
	"context"
	"os"
	"path/filepath"

	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/machine"
	"github.com/cleave-project/cleave/engine/qemu/qmp"
)

// Tell implements machine.Teller. What events told is there at once; the first
// call for a guest of an earlier daemon only has them come.
func (m *monitor) Tell(g *machine.Guest) engine.Vitals {
	s := m.session(g)
	s.mu.Lock()
	connected := s.client != nil && s.client.Err() == nil
	v := engine.Vitals{Accel: s.accel, Reboots: s.reboots}
	if s.open[guestPort] {
		v.Agent = "qemu"
	}
	looking := s.looking
	if !connected {
		s.looking = true
	}
	s.mu.Unlock()
	if v.Accel == "" {
		b, _ := os.ReadFile(filepath.Join(g.Dir, accelFile)) // of a guest that goes away there is none
		v.Accel = string(b)
		s.mu.Lock()
		s.accel = v.Accel
		s.mu.Unlock()
	}
	if !connected && !looking {
		m.looking.Go(func() { s.look(m.ctx, g.Dir) })
	}
	return v
}

// look connects to a guest, to hear of its events.
func (s *session) look(ctx context.Context, dir string) {
	ctx, cancel := context.WithTimeout(ctx, qmp.Limit)
	defer cancel()
	if c, err := s.connect(ctx, dir); err == nil {
		_ = s.ports(ctx, c) // or the next event tells
	}
	s.mu.Lock()
	s.looking = false
	s.mu.Unlock()
}
