package vmm

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/cleave-project/cleave/vmm/kvm"
)

// Moved is the Reason of a machine whose guest has gone on elsewhere.
const Moved Reason = "moved"

// Move is a machine's guest on its way to another host (package migrate).
// While there is one, devices don't come and no snapshots are made. Its
// methods are called one after the other.
type Move struct {
	machine *Machine
	paused  bool // was, before Freeze
	slow    *throttle
}

// Description is what a destination has to know before memory comes.
type Description struct {
	Version   int
	Memory    uint64
	Pluggable uint64
	CPUID     [][]kvm.CPUIDEntry // of each processor
	Devices   []string
	TSCKHz    int // 0 where the host has no stable one
}

// StartMove begins a move. End is to follow, unless Gone does.
func (m *Machine) StartMove() (*Move, error) {
	m.life.Lock()
	defer m.life.Unlock()
	if m.move != nil {
		return nil, errors.New("move the guest: it is on its way already")
	}
	if m.Absent() > 0 {
		return nil, fmt.Errorf("move the guest: %w", errArriving)
	}
	if m.saved != "" {
		// What changed since a snapshot can't be told any more.
		m.saved = ""
		if err := m.logDirty(false); err != nil {
			return nil, err
		}
	}
	m.move = &Move{machine: m}
	m.moving.Store(true)
	return m.move, nil
}

// Description implements migrate.Guest.
func (v *Move) Description() ([]byte, error) {
	m := v.machine
	d := Description{Version: stateVersion, Memory: m.memory.Size(), Pluggable: m.memory.FileSize() - m.memory.Size(), TSCKHz: m.cpus[0].tscKHz}
	for _, c := range m.cpus {
		d.CPUID = append(d.CPUID, c.cpuid)
	}
	for _, dev := range m.Devices() {
		d.Devices = append(d.Devices, dev.Name)
	}
	return json.Marshal(&d)
}

// Throttle implements migrate.Guest.
func (v *Move) Throttle(percent int) {
	if v.slow != nil {
		v.slow.end()
		v.slow = nil
	}
	if percent > 0 {
		v.slow = v.machine.throttle(percent)
	}
}

// Freeze implements migrate.Guest. The state comes before the last look at what
// was written: reading it may write to memory.
func (v *Move) Freeze() ([]byte, error) {
	m := v.machine
	m.life.Lock()
	defer m.life.Unlock()
	if m.done.Load() {
		return nil, errors.New("the guest has ended")
	}
	v.paused, m.frozen = m.paused, true
	if err := m.pause(); err != nil {
		return nil, err
	}
	if m.done.Load() {
		return nil, errors.New("the guest has ended")
	}
	s, err := m.state(m.msrs)
	if err != nil {
		return nil, err
	}
	return json.Marshal(&arrival{Paused: v.paused, State: *s})
}

// arrival is a guest as it comes.
type arrival struct {
	Paused bool
	State
}

// Thaw implements migrate.Guest.
func (v *Move) Thaw() error {
	m := v.machine
	m.life.Lock()
	defer m.life.Unlock()
	m.frozen = false
	if v.paused {
		return nil
	}
	return m.resume()
}

// End ends a move after which the guest is still here.
func (v *Move) End() {
	v.Throttle(0)
	v.machine.life.Lock()
	defer v.machine.life.Unlock()
	v.machine.move = nil
	v.machine.moving.Store(false)
}

// Gone ends the machine: the guest is elsewhere.
func (v *Move) Gone() {
	v.Throttle(0)
	v.machine.finish(End{Reason: Moved}, nil)
}

// Ended is closed when the machine has ended.
func (m *Machine) Ended() <-chan struct{} { return m.ended }

// errArriving is what snapshots and moves are told before it is all here.
var errArriving = errors.New("a part of its memory is still to come from where it was")

// errMoving is what devices and snapshots are told that come meanwhile.
var errMoving = errors.New("the guest is about to move to another host")
