package monitor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/cleave-project/cleave/vmm"
	"github.com/cleave-project/cleave/vmm/control"
	"github.com/cleave-project/cleave/vmm/memory"
	"github.com/cleave-project/cleave/vmm/migrate"
)

// Incoming is where a guest may come from.
type Incoming struct {
	Listener migrate.Listener
	Identity *migrate.Identity // nil for a listener within the host
	// Faults is an open memory.FaultDevice, without which guests don't run
	// before all of their memory is here.
	Faults *os.File
}

// place is a monitor that waits for a guest.
type place struct {
	monitor *Monitor
	machine *vmm.Machine
	goOn    bool
	runs    chan struct{} // closed by Run
}

// Prepare implements migrate.Place.
func (p *place) Prepare(description []byte, volumes []migrate.Info) ([]migrate.Sink, error) {
	if len(volumes) == 0 {
		return nil, errors.New("the guest has no memory")
	}
	m := p.monitor
	sinks, err := m.awaited(volumes[1:])
	if err != nil {
		return nil, err
	}
	c := m.machineConfig()
	c.Devices, c.Faults = nil, m.config.Incoming.Faults
	if volumes[0].Later {
		switch {
		case c.Faults == nil:
			return nil, fmt.Errorf("a guest can run before all of its memory is here only where there is %s (since Linux 6.1)", memory.FaultDevice)
		case c.HugePages:
			return nil, errors.New("a guest with huge pages can't run before all of its memory is here")
		}
	}
	if p.machine, err = vmm.Expect(m.sys, c, description); err != nil {
		return nil, err
	}
	m.moved(func(s *moves) { s.now.State = control.Arriving })
	return append([]migrate.Sink{image{p.machine.Image()}}, sinks...), nil
}

// Load implements migrate.Place: from here on the disks have what the guest
// wrote at the source.
func (p *place) Load(state []byte) (err error) {
	m := p.monitor
	m.mu.Lock()
	var devices []vmm.Device
	for _, d := range m.devices {
		if d.renew != nil {
			d.renew()
		}
		devices = append(devices, d.Device)
	}
	m.mu.Unlock()
	p.goOn, err = p.machine.Arrive(state, devices)
	return err
}

// Run implements migrate.Place.
func (p *place) Run() error {
	m := p.monitor
	m.moved(func(s *moves) { s.cancel = nil }) // it is ours
	m.life.Lock()
	defer m.life.Unlock()
	if p.goOn {
		if err := p.machine.Resume(); err != nil {
			return err
		}
	}
	m.machine = p.machine
	m.moved(func(s *moves) {
		if s.now.State = control.Arrived; p.machine.Absent() > 0 {
			s.now.State, s.coming = control.Following, p.machine
		}
	})
	close(p.runs)
	return nil
}

// absent tells why there is no machine.
func (m *Monitor) absent() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch m.moves.now.State {
	case control.Awaiting, control.Arriving, control.Undecided:
		return errors.New("the guest has not arrived")
	}
	return errEnded
}

// arrive waits for a guest, and for the word whether it is here if that isn't
// decided. What follows it is taken care of in the background.
func (m *Monitor) arrive(ctx context.Context, background *sync.WaitGroup) error {
	in := m.config.Incoming
	p := &place{monitor: m, runs: make(chan struct{})}
	receiving, cancel := context.WithCancel(ctx)
	m.moved(func(s *moves) { s.now.State, s.cancel = control.Awaiting, cancel })
	received := make(chan error, 1)
	background.Go(func() { received <- migrate.Receive(receiving, in.Listener, p, in.Identity) })
	select {
	case err := <-received:
		received <- err
	case <-p.runs:
	}
	select {
	case <-p.runs:
		background.Go(func() {
			defer cancel()
			m.followed(p.machine, received, cancel)
		})
		return nil
	default:
		cancel()
		return m.received(ctx, p, <-received)
	}
}

// followed waits until all of a guest is here, or it has ended.
func (m *Monitor) followed(machine *vmm.Machine, received <-chan error, cancel func()) {
	var err error
	select {
	case err = <-received:
	case <-machine.Ended(): // and needs no memory
		cancel()
	}
	m.moved(func(s *moves) {
		s.coming = nil
		if s.now.State = control.Arrived; err != nil {
			s.now.Error = err.Error()
		}
	})
	if err != nil {
		machine.Stop() // nothing, if it has ended
	}
}

// received is what becomes of a guest that doesn't run when it has been
// received.
func (m *Monitor) received(ctx context.Context, p *place, err error) error {
	if errors.Is(err, migrate.ErrUndecided) {
		word := make(chan error, 1)
		m.undecided(err, func(here bool) error {
			if !here {
				word <- err
				return nil
			}
			e := p.Run()
			word <- e
			return e
		})
		select {
		case err = <-word:
		case <-ctx.Done():
		}
	}
	if err != nil && p.machine != nil {
		err = errors.Join(err, p.machine.Close())
	}
	return err
}
