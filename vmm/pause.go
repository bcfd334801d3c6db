package vmm

import (
	"errors"
	"fmt"
)

// Pause returns when no vCPU is in the guest any more and no device touches
// its memory. Its clock stands still.
func (m *Machine) Pause() error {
	m.life.Lock()
	defer m.life.Unlock()
	if m.Absent() > 0 { // for which a processor may wait for ever
		return fmt.Errorf("pause: %w", errArriving)
	}
	return m.pause()
}

func (m *Machine) pause() error {
	if m.paused {
		return nil
	}
	m.paused = true
	m.gate.shut()
	for _, c := range m.cpus {
		c.kick()
	}
	m.gate.wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, f := range m.functions {
		f.Pause()
	}
	var err error
	m.clock, err = m.vm.Clock()
	return err
}

// Paused tells whether it is.
func (m *Machine) Paused() bool {
	m.life.Lock()
	defer m.life.Unlock()
	return m.paused
}

// Resume lets the guest go on.
func (m *Machine) Resume() error {
	m.life.Lock()
	defer m.life.Unlock()
	if m.frozen {
		return errors.New("resume: the guest is being handed over to another host")
	}
	return m.resume()
}

func (m *Machine) resume() error {
	if !m.paused {
		return nil
	}
	m.paused = false
	m.clock.Flags = 0 // from where it stopped, not with what passed since
	errs := []error{m.vm.SetClock(m.clock)}
	for _, c := range m.cpus {
		// A guest that has no kvm-clock has none to be told.
		_ = c.cpu.ClockPaused()
	}
	m.mu.Lock()
	for _, f := range m.functions {
		f.Resume()
	}
	m.mu.Unlock()
	m.gate.open()
	return errors.Join(errs...)
}
