package pci

import (
	"encoding/binary"
	"fmt"
	"sync"
)

// Capability ids (PCI Code and ID Assignment).
const (
	CapMSIX   = 0x11
	CapVendor = 0x09
)

// MSI-X (PCI Local Bus 3.0, 6.8.2).
const (
	msixEntry    = 16
	msixEnable   = 1 << 15
	msixMaskAll  = 1 << 14
	entryMasked  = 1
	msixCapSize  = 10
	controlInCap = 2 // of the message control, from the capability's start
)

// Messages is what an interrupt of a function goes through.
type Messages interface {
	// Route has vector n of the function lead to a message; ok is false
	// while it is masked.
	Route(n int, addr uint64, data uint32, ok bool)
	// Signal sends vector n's message.
	Signal(n int)
}

// MSIX is the table of a function's interrupts, in a BAR of it.
type MSIX struct {
	space *Space
	cap   int // where the capability is
	out   Messages

	mu      sync.Mutex
	table   []byte
	pending []bool
	control uint16
}

// NewMSIX adds n vectors to a function. Table and pending bits lie in a BAR
// at the given offsets, where the device has Read and Write called.
func NewMSIX(s *Space, n, bar int, table, pending uint32, out Messages) (*MSIX, error) {
	if n < 1 || n > 2048 {
		return nil, fmt.Errorf("%d MSI-X vectors", n)
	}
	m := &MSIX{space: s, out: out, table: make([]byte, n*msixEntry), pending: make([]bool, n)}
	for i := range n {
		m.table[i*msixEntry+12] = entryMasked
	}
	data, mask := make([]byte, msixCapSize), make([]byte, msixCapSize)
	binary.LittleEndian.PutUint16(data, uint16(n-1))
	binary.LittleEndian.PutUint32(data[2:], table|uint32(bar))
	binary.LittleEndian.PutUint32(data[6:], pending|uint32(bar))
	binary.LittleEndian.PutUint16(mask, msixEnable|msixMaskAll)
	m.cap = s.AddCapability(CapMSIX, data, mask)
	s.Watch(m.cap+controlInCap, 2, m.controlWritten)
	return m, nil
}

// ReadTable is a read of the guest from the table.
func (m *MSIX) ReadTable(offset uint64, data []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(data)
	if offset < uint64(len(m.table)) {
		copy(data, m.table[offset:])
	}
}

// ReadPending is one from the pending bits.
func (m *MSIX) ReadPending(offset uint64, data []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(data)
	for i, p := range m.pending {
		if at := uint64(i / 8); p && at >= offset && at-offset < uint64(len(data)) {
			data[at-offset] |= 1 << (i % 8)
		}
	}
}

// WriteTable is a write of the guest: of 4 or 8 bytes, aligned; others have no
// effect (6.8.2).
func (m *MSIX) WriteTable(offset uint64, data []byte) {
	n := uint64(len(data))
	if n != 4 && n != 8 || offset%n != 0 || offset+n > uint64(len(m.table)) {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(m.table[offset:], data)
	m.update(int(offset / msixEntry))
}

// controlWritten is called when the guest has written the capability's
// control.
func (m *MSIX) controlWritten() {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := binary.LittleEndian.Uint16(m.space.Bytes(m.cap+controlInCap, 2))
	if now == m.control {
		return
	}
	m.control = now
	for i := range m.pending {
		m.update(i)
	}
}

// masked tells whether vector i can't be sent now.
func (m *MSIX) masked(i int) bool {
	return m.control&msixEnable == 0 || m.control&msixMaskAll != 0 || m.table[i*msixEntry+12]&entryMasked != 0
}

// update hands vector i's message on, and sends it if it was waiting.
func (m *MSIX) update(i int) {
	e := m.table[i*msixEntry:]
	open := !m.masked(i)
	m.out.Route(i, binary.LittleEndian.Uint64(e), binary.LittleEndian.Uint32(e[8:]), open)
	if open && m.pending[i] {
		m.pending[i] = false
		m.out.Signal(i)
	}
}

// Enabled tells whether the guest uses MSI-X.
func (m *MSIX) Enabled() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.control&msixEnable != 0
}

// Raise sends vector i's message, now or when it isn't masked any more.
func (m *MSIX) Raise(i int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case i >= len(m.pending):
	case m.masked(i):
		m.pending[i] = m.control&msixEnable != 0
	default:
		m.out.Signal(i)
	}
}

// MSIXState is what is saved of it. Version 1.
type MSIXState struct {
	Table   []byte
	Pending []bool
}

// Save returns its state; the control is in the function's space.
func (m *MSIX) Save() MSIXState {
	m.mu.Lock()
	defer m.mu.Unlock()
	return MSIXState{append([]byte(nil), m.table...), append([]bool(nil), m.pending...)}
}

// Restore puts it into a state, after its space was restored.
func (m *MSIX) Restore(s MSIXState) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(s.Table) != len(m.table) || len(s.Pending) != len(m.pending) {
		return fmt.Errorf("a table of %d bytes for %d interrupts", len(s.Table), len(m.pending))
	}
	copy(m.table, s.Table)
	copy(m.pending, s.Pending)
	m.control = binary.LittleEndian.Uint16(m.space.Bytes(m.cap+controlInCap, 2))
	for i := range m.pending {
		m.update(i)
	}
	return nil
}
