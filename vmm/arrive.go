package vmm

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/cleave-project/cleave/vmm/kvm"
	"github.com/cleave-project/cleave/vmm/memory"
)

// Expect makes a machine for a guest that is to come, of which a Description
// was given, as package migrate has it: its memory is to be filled, and Arrive
// completes it.
func Expect(sys *kvm.System, c Config, description []byte) (*Machine, error) {
	var d Description
	if err := json.Unmarshal(description, &d); err != nil {
		return nil, fmt.Errorf("expect a guest: %w", err)
	}
	switch {
	case d.Version != stateVersion:
		return nil, fmt.Errorf("expect a guest: its state has version %d, and %d is what can be read", d.Version, stateVersion)
	case d.Memory != c.Memory || d.Pluggable != c.Pluggable || len(d.CPUID) != c.CPUs:
		return nil, fmt.Errorf("expect a guest: it has %d bytes of memory, %d pluggable ones and %d processors, and there is room for %d, %d and %d",
			d.Memory, d.Pluggable, len(d.CPUID), c.Memory, c.Pluggable, c.CPUs)
	}
	host, err := sys.SupportedCPUID()
	if err != nil {
		return nil, err
	}
	for _, leaves := range d.CPUID {
		if len(leaves) == 0 || len(leaves) > kvm.MaxCPUID {
			return nil, fmt.Errorf("expect a guest: a processor has %d leaves of CPUID", len(leaves))
		}
		if err := covers(host, leaves); err != nil {
			return nil, fmt.Errorf("expect a guest: %w", err)
		}
	}
	ram, err := memory.New(d.Memory, memory.Options{HugePages: c.HugePages, Pluggable: c.Pluggable})
	if err != nil {
		return nil, err
	}
	m, err := assemble(sys, c, ram, d.CPUID)
	if err != nil {
		return nil, err
	}
	m.absent, m.faults = ram.NewAbsent(), c.Faults
	for _, v := range m.cpus {
		if err := v.setTSC(d.TSCKHz); err != nil { // better now than while the guest stands still
			m.Close()
			return nil, fmt.Errorf("expect a guest: %w", err)
		}
	}
	return m, nil
}

// Image is the memory of a machine that is expected.
func (m *Machine) Image() Image { return Image{m} }

// Absent is how many bytes of memory are still to come.
func (m *Machine) Absent() int64 {
	if m.absent == nil {
		return 0
	}
	return m.absent.Left()
}

// Arrive puts a machine that was expected into the state of its guest. It is
// paused; goOn says whether the guest ran before.
func (m *Machine) Arrive(state []byte, devices []Device) (goOn bool, err error) {
	var a arrival
	if len(state) > maxState {
		return false, fmt.Errorf("the state has more than %d bytes", maxState)
	}
	if err := json.Unmarshal(state, &a); err != nil {
		return false, fmt.Errorf("read the state: %w", err)
	}
	if err := a.check(); err != nil {
		return false, fmt.Errorf("the state can't be: %w", err)
	}
	if len(a.CPUs) != len(m.cpus) || a.Memory != m.memory.Size() || a.Pluggable != m.memory.FileSize()-m.memory.Size() {
		return false, errors.New("the state can't be: it is of another machine than was announced")
	}
	return !a.Paused, m.restore(&a.State, devices)
}
