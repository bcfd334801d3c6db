package monitor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/cleave-project/cleave/vmm"
	"github.com/cleave-project/cleave/vmm/control"
	"github.com/cleave-project/cleave/vmm/memory"
	"github.com/cleave-project/cleave/vmm/pages"
)

// Pages is who brings the memory of a guest that is restored.
type Pages struct {
	Conn net.Conn
	// Faults is an open memory.FaultDevice.
	Faults *os.File
}

// restore makes a machine of a snapshot.
func (m *Monitor) restore() (*vmm.Machine, error) {
	c := m.machineConfig()
	if m.config.Pages == nil {
		return vmm.Restore(m.sys, c, m.config.Restore...)
	}
	if c.Faults = m.config.Pages.Faults; c.Faults == nil {
		return nil, fmt.Errorf("a guest can run before its memory is here only where there is %s (since Linux 6.1)", memory.FaultDevice)
	}
	if len(m.config.Restore) != 1 {
		return nil, errors.New("of a snapshot whose memory comes from elsewhere the last layer alone is needed")
	}
	machine, err := vmm.RestoreFrom(m.sys, c, m.config.Restore[0].State, m.fetch)
	if err != nil {
		return nil, errors.Join(err, m.fetched())
	}
	m.moved(func(s *moves) {
		if machine.Absent() > 0 {
			s.now.State, s.coming = control.Following, machine
		}
	})
	return machine, nil
}

// fetching is what goes on while a restored guest's memory comes.
type fetching struct {
	cancel context.CancelFunc
	ended  chan struct{}
	err    error // with ended
}

// fetch has a memory come, from now on.
func (m *Monitor) fetch(image vmm.Image) error {
	f := pages.NewFetcher()
	if err := image.Await(func(p vmm.Part) { f.Want(p.Offset, p.Size) }); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.fetching = &fetching{cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(m.fetching.ended)
		if err := f.Run(ctx, m.config.Pages.Conn, image); err != nil {
			m.fetching.err = err
			image.Lost(err)
		}
		m.moved(func(s *moves) { s.now.State, s.coming = "", nil })
	}()
	return nil
}

// fetched ends the fetching of memory, and is what it has failed for.
func (m *Monitor) fetched() error {
	if m.fetching == nil {
		return nil
	}
	m.fetching.cancel()
	<-m.fetching.ended
	if errors.Is(m.fetching.err, context.Canceled) {
		return nil // by us
	}
	return m.fetching.err
}
