package monitor

import (
	"context"
	"errors"
	"net"

	"github.com/cleave-project/cleave/vmm"
	"github.com/cleave-project/cleave/vmm/control"
	"github.com/cleave-project/cleave/vmm/migrate"
)

// Incoming is where a guest may come from.
type Incoming struct {
	Listener net.Listener
	Identity *migrate.Identity // nil for a listener within the host
}

// place is a monitor that waits for a guest.
type place struct {
	monitor *Monitor
	machine *vmm.Machine
	goOn    bool
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
	c.Devices = nil
	if p.machine, err = vmm.Expect(m.sys, c, description); err != nil {
		return nil, err
	}
	m.moved(func(s *moves) { s.now.State = control.Arriving })
	return append([]migrate.Sink{p.machine.Image()}, sinks...), nil
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
	m.life.Lock()
	defer m.life.Unlock()
	if p.goOn {
		if err := p.machine.Resume(); err != nil {
			return err
		}
	}
	m.machine = p.machine
	m.moved(func(s *moves) { s.now.State, s.cancel = control.Arrived, nil })
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
// decided.
func (m *Monitor) arrive(ctx context.Context) error {
	in := m.config.Incoming
	p := &place{monitor: m}
	receiving, cancel := context.WithCancel(ctx)
	defer cancel()
	m.moved(func(s *moves) { s.now.State, s.cancel = control.Awaiting, cancel })
	err := migrate.Receive(receiving, in.Listener, p, in.Identity)
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
