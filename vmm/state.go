package vmm

import (
	"errors"
	"fmt"

	"github.com/cleave-project/cleave/vmm/kvm"
	"github.com/cleave-project/cleave/vmm/serial"
	"github.com/cleave-project/cleave/vmm/virtio"
)

// stateVersion is that of State.
const stateVersion = 1

// State is all of a paused machine but its memory.
type State struct {
	Version int
	Memory  uint64
	// Pluggable is how much there may be beside.
	Pluggable uint64 `json:",omitempty"`

	CPUs    []*cpuState
	Chips   [][]byte // PICs and I/O APIC
	Clock   kvm.ClockData
	Serial  serial.State
	Events  byte
	Slots   [2]uint32 // filled and leaving
	PCI     uint32    // the latch of its ports
	Devices []deviceState
}

// deviceState is a device's with its place.
type deviceState struct {
	Name   string
	Slot   int
	Virtio *virtio.TransportState
}

// state collects the state of a paused machine.
func (m *Machine) state(msrs []uint32) (*State, error) {
	s := &State{
		Version: stateVersion, Memory: m.memory.Size(), Pluggable: m.memory.FileSize() - m.memory.Size(), Clock: m.clock,
		Serial: m.serial.Save(), PCI: m.pci.Address(),
	}
	s.Events = m.power.save()
	s.Slots = m.slots.save()
	for _, c := range m.cpus {
		cs, err := c.save(m.vm, msrs)
		if err != nil {
			return nil, err
		}
		s.CPUs = append(s.CPUs, cs)
	}
	for i := range uint32(chips) {
		c, err := m.vm.IRQChip(i)
		if err != nil {
			return nil, err
		}
		s.Chips = append(s.Chips, c.State[:])
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, f := range m.functions {
		v, err := f.Save()
		if err != nil {
			return nil, fmt.Errorf("device %q: %w", f.Name, err)
		}
		s.Devices = append(s.Devices, deviceState{f.Name, f.slot, v})
	}
	return s, nil
}

// chips are the interrupt controllers of a machine beside the local ones.
const chips = 3

// check tells what can't be of a state, before anything is made from it.
func (s *State) check() error {
	switch {
	case s.Version != stateVersion:
		return fmt.Errorf("it has version %d, and %d is what can be read", s.Version, stateVersion)
	case s.Memory == 0 || s.Memory > maxMemory || !fits(s.Memory, s.Pluggable):
		return fmt.Errorf("it has %d bytes of memory, and %d pluggable ones", s.Memory, s.Pluggable)
	case len(s.CPUs) == 0 || len(s.CPUs) > maxCPUs:
		return fmt.Errorf("it has %d processors", len(s.CPUs))
	case len(s.Chips) != chips:
		return fmt.Errorf("it has %d interrupt controllers", len(s.Chips))
	}
	for _, c := range s.Chips {
		if len(c) != len(kvm.IRQChip{}.State) {
			return fmt.Errorf("it has an interrupt controller of %d bytes", len(c))
		}
	}
	for _, c := range s.CPUs {
		if c == nil {
			return errors.New("it lacks a processor")
		}
	}
	names, slots := map[string]bool{}, map[int]bool{}
	for _, d := range s.Devices {
		if d.Virtio == nil || d.Name == "" || names[d.Name] || slots[d.Slot] {
			return fmt.Errorf("device %q in slot %d can't be", d.Name, d.Slot)
		}
		names[d.Name], slots[d.Slot] = true, true
	}
	return nil
}

// restore puts a machine that was just assembled into a state.
func (m *Machine) restore(s *State, devices []Device) error {
	given := map[string]Device{}
	for _, d := range devices {
		given[d.Name] = d
	}
	if len(given) != len(devices) || len(devices) != len(s.Devices) {
		return fmt.Errorf("the machine was saved with %d devices, and %d are there", len(s.Devices), len(given))
	}
	for _, d := range s.Devices {
		g, ok := given[d.Name]
		if !ok {
			return fmt.Errorf("the machine was saved with a device %q, which is not there", d.Name)
		}
		if err := m.plug(g, d.Slot, d.Virtio); err != nil {
			return err
		}
	}
	for i, c := range s.Chips {
		chip := kvm.IRQChip{ID: uint32(i)}
		copy(chip.State[:], c)
		if err := m.vm.SetIRQChip(chip); err != nil {
			return err
		}
	}
	for i, c := range m.cpus {
		if err := s.CPUs[i].check(m.vm.XSAVESize()); err != nil {
			return err
		}
		if err := c.restore(s.CPUs[i]); err != nil {
			return err
		}
	}
	m.serial.Restore(s.Serial)
	m.power.restore(s.Events)
	m.slots.restore(s.Slots)
	m.pci.SetAddress(s.PCI)
	m.paused, m.clock = true, s.Clock
	m.gate.shut()
	return nil
}
