package pci

import (
	"encoding/binary"
	"fmt"
)

// Registers of the configuration header (PCI Local Bus, 6.1).
const (
	regVendor       = 0x00
	regDevice       = 0x02
	regCommand      = 0x04
	regStatus       = 0x06
	regRevision     = 0x08
	regClass        = 0x09
	regBAR          = 0x10
	regSubVendor    = 0x2c
	regSubDevice    = 0x2e
	regCapabilities = 0x34
	headerSize      = 0x40

	commandMemory = 1 << 1
	commandMaster = 1 << 2
	// commandBits are those of the command register that mean anything here:
	// memory, bus master, and interrupts by line disabled.
	commandBits = commandMemory | commandMaster | 1<<10

	statusCapabilities = 1 << 4

	barMemory64 = 1 << 2

	// SpaceSize is a function's configuration space.
	SpaceSize = 4096
)

// ID says what a function is.
type ID struct {
	Vendor, Device       uint16
	Class                uint32 // 24 bits: class, subclass, interface
	Revision             uint8
	SubVendor, SubDevice uint16
}

// Space is a configuration space: bytes, of which the guest may write some
// bits. The bus guards it.
type Space struct {
	bytes [SpaceSize]byte
	mask  [SpaceSize]byte // the bits that the guest may write
	bars  [6]bar
	last  int // the capability that was added last
	free  int // where the next goes
	watch []watch
}

// watch is who is told of writes to some registers.
type watch struct {
	at, size int
	written  func()
}

type bar struct{ size uint64 }

// NewSpace returns the space of a function that has nothing yet.
func NewSpace(id ID) *Space {
	s := &Space{free: headerSize}
	s.put16(regVendor, id.Vendor)
	s.put16(regDevice, id.Device)
	s.bytes[regRevision] = id.Revision
	s.bytes[regClass], s.bytes[regClass+1], s.bytes[regClass+2] = byte(id.Class), byte(id.Class>>8), byte(id.Class>>16)
	s.put16(regSubVendor, id.SubVendor)
	s.put16(regSubDevice, id.SubDevice)
	binary.LittleEndian.PutUint16(s.mask[regCommand:], commandBits)
	return s
}

func (s *Space) put16(at int, v uint16) { binary.LittleEndian.PutUint16(s.bytes[at:], v) }

// AddBAR gives the function memory of a size, a power of two, by 64-bit BAR n
// and n+1, placed at an address from the start (the guest may move it).
func (s *Space) AddBAR(n int, size, at uint64) {
	s.bars[n] = bar{size}
	reg := regBAR + 4*n
	binary.LittleEndian.PutUint64(s.bytes[reg:], at|barMemory64)
	// What the guest can't write is zero: so it finds out the size.
	binary.LittleEndian.PutUint64(s.mask[reg:], ^(size - 1))
}

// BAR is where BAR n is, 0 if it isn't there or memory is turned off.
func (s *Space) BAR(n int) uint64 {
	if s.bars[n].size == 0 || s.bytes[regCommand]&commandMemory == 0 {
		return 0
	}
	return binary.LittleEndian.Uint64(s.bytes[regBAR+4*n:]) &^ 0xf
}

// Enabled tells whether the function may reach memory itself.
func (s *Space) Enabled() bool { return s.bytes[regCommand]&commandMaster != 0 }

// AddCapability appends a capability (6.7) with its data behind id and
// pointer, and with the bits of it that the guest may write. It returns where
// it is.
func (s *Space) AddCapability(id byte, data, mask []byte) int {
	at := s.free
	copy(s.bytes[at+2:], data)
	copy(s.mask[at+2:], mask)
	s.bytes[at] = id
	if s.last == 0 {
		s.bytes[regCapabilities] = byte(at)
		s.put16(regStatus, statusCapabilities)
	} else {
		s.bytes[s.last+1] = byte(at)
	}
	s.last = at
	s.free = (at + 2 + len(data) + 3) &^ 3
	return at
}

// Read copies what the guest reads.
func (s *Space) Read(at int, data []byte) {
	clear(data)
	if at < SpaceSize {
		copy(data, s.bytes[at:])
	}
}

// Write does what the guest writes. It tells whether BARs may have moved.
func (s *Space) Write(at int, data []byte) (moved bool) {
	for i, v := range data {
		p := at + i
		if p >= SpaceSize {
			break
		}
		s.bytes[p] = s.bytes[p]&^s.mask[p] | v&s.mask[p]
		moved = moved || p >= regCommand && p < regCommand+2 || p >= regBAR && p < regBAR+24
	}
	for _, w := range s.watch {
		if at < w.at+w.size && at+len(data) > w.at {
			w.written()
		}
	}
	return moved
}

// Watch has a function called after writes to any of size registers.
func (s *Space) Watch(at, size int, written func()) {
	s.watch = append(s.watch, watch{at, size, written})
}

// Bytes are n bytes of it, for a device to look at or to change.
func (s *Space) Bytes(at, n int) []byte { return s.bytes[at : at+n] }

// State is what is saved of a space. Version 1.
type State struct{ Bytes []byte }

// Save returns the space's state.
func (s *Space) Save() State { return State{append([]byte(nil), s.bytes[:]...)} }

// Restore puts a space that is made the same way into a state. What the guest
// may not write must be the same there: else it is another function's.
func (s *Space) Restore(st State) error {
	if len(st.Bytes) != SpaceSize {
		return fmt.Errorf("a configuration space of %d bytes", len(st.Bytes))
	}
	for i, v := range st.Bytes {
		if (v^s.bytes[i])&^s.mask[i] != 0 {
			return fmt.Errorf("the configuration space is another device's: byte %#x is %#x, not %#x", i, v, s.bytes[i])
		}
	}
	s.Write(0, st.Bytes)
	return nil
}
