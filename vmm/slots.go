package vmm

import (
	"encoding/binary"
	"math/bits"
	"sync"
)

// slotPorts are the three registers by which the guest learns of devices that
// came and that shall leave, each a bit, and by which it lets go of them
// (package acpi, Ports.Slots). Reading takes the bits back.
type slotPorts struct {
	machine *Machine

	mu              sync.Mutex
	filled, leaving uint32
}

// fill notes a device that came.
func (s *slotPorts) fill(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.filled |= 1 << n
}

// empty notes a device that shall leave.
func (s *slotPorts) empty(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaving |= 1 << n
}

func (s *slotPorts) Read(offset uint64, data []byte) {
	clear(data)
	if len(data) != 4 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch offset {
	case 0:
		binary.LittleEndian.PutUint32(data, s.filled)
		s.filled = 0
	case 4:
		binary.LittleEndian.PutUint32(data, s.leaving)
		s.leaving = 0
	}
}

func (s *slotPorts) Write(offset uint64, data []byte) {
	if offset != 8 || len(data) != 4 {
		return
	}
	for b := binary.LittleEndian.Uint32(data); b != 0; b &= b - 1 {
		s.machine.eject(bits.TrailingZeros32(b))
	}
}

func (s *slotPorts) save() [2]uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return [2]uint32{s.filled, s.leaving}
}

func (s *slotPorts) restore(v [2]uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.filled, s.leaving = v[0], v[1]
}
