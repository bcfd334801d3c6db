package qemu

import (
	"context"
	"slices"
	"strings"
	"sync"

	"github.com/cleave-project/cleave/engine/machine"
	"github.com/cleave-project/cleave/engine/qemu/qmp"
)

// session is what is known of one running QEMU: its connection, which is made
// anew when it broke, and what its events told.
type session struct {
	id  string
	pid int

	dialing chan struct{} // holds one token: who has it may connect

	mu       sync.Mutex
	client   *qmp.Client
	drained  chan struct{} // closed when the client's events have been read
	closed   bool
	looking  bool // somebody connects only to hear of events
	accel    string
	shutdown string          // why QEMU ends
	reboots  int             // by the guest itself
	open     map[string]bool // the ports that the guest has opened
	watchers map[*watcher]struct{}
}

// watcher waits for events.
type watcher struct {
	names  []string
	events chan qmp.Event
}

// session finds that of a guest.
func (m *monitor) session(g *machine.Guest) *session {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.sessions[g.ID]
	if s == nil || s.pid != g.PID {
		if s != nil {
			go s.close() // of a process that has ended
		}
		s = &session{id: g.ID, pid: g.PID, dialing: make(chan struct{}, 1), watchers: map[*watcher]struct{}{}, open: map[string]bool{}}
		m.sessions[g.ID] = s
	}
	return s
}

// client returns a guest's connection, for commands.
func (m *monitor) client(ctx context.Context, g *machine.Guest) (*qmp.Client, *session, error) {
	s := m.session(g)
	c, err := s.connect(ctx, g.Dir)
	return c, s, err
}

// connect returns the connection, or makes one.
func (s *session) connect(ctx context.Context, dir string) (*qmp.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, qmp.Limit)
	defer cancel()
	select {
	case s.dialing <- struct{}{}:
		defer func() { <-s.dialing }()
	case <-ctx.Done():
		return nil, machine.Unanswered(s.id, ctx.Err())
	}
	s.mu.Lock()
	c := s.client
	s.mu.Unlock()
	if c != nil && c.Err() == nil {
		return c, nil
	}
	conn, err := machine.Dial(ctx, s.id, dir, monitorSocket)
	if err != nil {
		return nil, err
	}
	c, err = qmp.New(ctx, conn)
	if err != nil {
		return nil, machine.Unanswered(s.id, err)
	}
	drained := make(chan struct{})
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		c.Close()
		return nil, machine.Unanswered(s.id, qmp.ErrClosed)
	}
	s.client, s.drained = c, drained
	go s.read(c, drained)
	return c, nil
}

// ports looks which ports the guest has opened. What changes tell events.
func (s *session) ports(ctx context.Context, c *qmp.Client) error {
	open, err := c.OpenPorts(ctx)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range open {
		s.open[name] = true
	}
	return nil
}

// read takes in a connection's events until it ends.
func (s *session) read(c *qmp.Client, drained chan struct{}) {
	defer close(drained)
	for e := range c.Events() {
		s.mu.Lock()
		s.take(e)
		for w := range s.watchers {
			if slices.Contains(w.names, e.Name) {
				select {
				case w.events <- e:
				default: // it looks at the state as well
				}
			}
		}
		s.mu.Unlock()
	}
}

// take notes what an event tells.
func (s *session) take(e qmp.Event) {
	switch e.Name {
	case qmp.EventShutdown:
		var why qmp.Shutdown
		if e.Decode(&why) == nil && s.shutdown == "" {
			s.shutdown = why.Reason
		}
	case qmp.EventReset:
		var r qmp.Shutdown
		if e.Decode(&r) == nil && r.Guest {
			s.reboots++
		}
	case qmp.EventPort:
		var p qmp.Port
		if e.Decode(&p) == nil && (p.ID == portOf(agentPort) || p.ID == portOf(guestPort)) {
			s.open[strings.TrimPrefix(p.ID, portOf(""))] = p.Open
		}
	}
}

// watch delivers events by name until stop is called.
func (s *session) watch(names ...string) (events <-chan qmp.Event, stop func()) {
	w := &watcher{names: names, events: make(chan qmp.Event, 16)}
	s.mu.Lock()
	s.watchers[w] = struct{}{}
	s.mu.Unlock()
	return w.events, func() {
		s.mu.Lock()
		delete(s.watchers, w)
		s.mu.Unlock()
	}
}

// close ends the connection; what it told before is known then.
func (s *session) close() {
	s.mu.Lock()
	s.closed = true
	c, drained := s.client, s.drained
	s.mu.Unlock()
	if c != nil {
		c.Close()
		<-drained
	}
}
