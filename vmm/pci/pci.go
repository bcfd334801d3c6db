// Package pci is a machine's one PCI Express bus: the configuration spaces of
// up to 32 devices of one function each, by ECAM and by the ports 0xcf8 and
// 0xcfc, base address registers that are mapped as the guest says, and MSI-X
// (PCI Local Bus 3.0; PCI Express Base 3.0).
package pci

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"

	"github.com/cleave-project/cleave/vmm/bus"
)

// Slots is how many devices there may be.
const Slots = 32

// Device is a function on the bus. Its memory bars are accessed from the
// vCPUs' threads, at the same time.
type Device interface {
	// Space is its configuration space, which the bus reads and writes.
	Space() *Space
	ReadBAR(bar int, offset uint64, data []byte)
	WriteBAR(bar int, offset uint64, data []byte)
}

// Mapped is implemented by devices that are told where in memory a BAR is from
// now on; 0 is nowhere. The bus is locked meanwhile.
type Mapped interface {
	Mapped(bar int, at uint64)
}

// Bus is bus 0. It is a bus.Device for the memory of ECAM.
type Bus struct {
	memory *bus.Bus // where BARs are mapped

	mu      sync.Mutex
	slots   [Slots]*slot
	address uint32 // the latch at 0xcf8
}

// slot is a device with what of it is mapped.
type slot struct {
	device Device
	mapped [6]uint64 // address of each BAR; 0 if it isn't
}

// NewBus returns a bus with a host bridge in slot 0, which maps its devices'
// memory on another bus.
func NewBus(memory *bus.Bus) *Bus {
	b := &Bus{memory: memory}
	b.slots[0] = &slot{device: hostBridge{NewSpace(ID{Vendor: 0x8086, Device: 0x0d57, Class: 0x060000})}}
	return b
}

// hostBridge is what a kernel expects to find in slot 0.
type hostBridge struct{ space *Space }

func (h hostBridge) Space() *Space              { return h.space }
func (hostBridge) ReadBAR(int, uint64, []byte)  {}
func (hostBridge) WriteBAR(int, uint64, []byte) {}

// Add puts a device into a slot.
func (b *Bus) Add(n int, d Device) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n < 0 || n >= Slots || b.slots[n] != nil {
		return fmt.Errorf("PCI slot %d is taken, or there is none", n)
	}
	b.slots[n] = &slot{device: d}
	b.remap(n)
	return nil
}

// Free is the first slot without a device, -1 if there is none.
func (b *Bus) Free() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Index(b.slots[:], nil)
}

// Remove takes the device out of a slot.
func (b *Bus) Remove(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n > 0 && n < Slots && b.slots[n] != nil {
		b.unmap(n)
		b.slots[n] = nil
	}
}

// Read is an access by ECAM: 4 KiB for each function (PCI Express, 7.2.2).
func (b *Bus) Read(offset uint64, data []byte) {
	b.read(int(offset>>15), int(offset>>12&7), int(offset&0xfff), data)
}

// Write is one too.
func (b *Bus) Write(offset uint64, data []byte) {
	b.write(int(offset>>15), int(offset>>12&7), int(offset&0xfff), data)
}

func (b *Bus) read(n, function, offset int, data []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n >= Slots || b.slots[n] == nil || function != 0 {
		for i := range data {
			data[i] = 0xff // nobody claims it
		}
		return
	}
	b.slots[n].device.Space().Read(offset, data)
}

func (b *Bus) write(n, function, offset int, data []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n >= Slots || b.slots[n] == nil || function != 0 {
		return
	}
	if b.slots[n].device.Space().Write(offset, data) {
		b.remap(n)
	}
}

// remap maps a device's BARs where its registers say.
func (b *Bus) remap(n int) {
	s := b.slots[n]
	for i := range s.mapped {
		want := s.device.Space().BAR(i)
		if want == s.mapped[i] {
			continue
		}
		if s.mapped[i] != 0 {
			b.memory.Remove(s.mapped[i])
			s.mapTo(i, 0)
		}
		if want == 0 {
			continue
		}
		// A guest that maps one thing onto another doesn't get it; while it
		// finds out sizes, that is what it does.
		if b.memory.Add(want, s.device.Space().bars[i].size, barDevice{s.device, i}) == nil {
			s.mapTo(i, want)
		}
	}
}

// mapTo notes where a BAR is.
func (s *slot) mapTo(bar int, at uint64) {
	s.mapped[bar] = at
	if m, ok := s.device.(Mapped); ok {
		m.Mapped(bar, at)
	}
}

func (b *Bus) unmap(n int) {
	for i, at := range b.slots[n].mapped {
		if at != 0 {
			b.memory.Remove(at)
			b.slots[n].mapTo(i, 0)
		}
	}
}

// barDevice is a BAR on the bus of memory.
type barDevice struct {
	device Device
	bar    int
}

func (d barDevice) Read(offset uint64, data []byte)  { d.device.ReadBAR(d.bar, offset, data) }
func (d barDevice) Write(offset uint64, data []byte) { d.device.WriteBAR(d.bar, offset, data) }

// Ports is the older way to the same: 8 ports from 0xcf8 on (PCI Local Bus,
// 3.2.2.3.2).
func (b *Bus) Ports() bus.Device { return configPorts{b} }

// Address is what the guest has written to 0xcf8 last, to be saved.
func (b *Bus) Address() uint32 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.address
}

// SetAddress puts it back.
func (b *Bus) SetAddress(a uint32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.address = a
}

// PortBase is where Ports are, and PortCount how many.
const (
	PortBase  = 0xcf8
	PortCount = 8
)

type configPorts struct{ bus *Bus }

const portEnable = 1 << 31

// target is what the latch names, for an access at an offset of the data port.
func (p configPorts) target(offset uint64) (n, function, register int, ok bool) {
	p.bus.mu.Lock()
	a := p.bus.address
	p.bus.mu.Unlock()
	return int(a >> 11 & 0x1f), int(a >> 8 & 7), int(a&0xfc) + int(offset&3), a&portEnable != 0 && a>>16&0xff == 0
}

func (p configPorts) Read(offset uint64, data []byte) {
	if offset < 4 {
		p.bus.mu.Lock()
		defer p.bus.mu.Unlock()
		var latch [4]byte
		binary.LittleEndian.PutUint32(latch[:], p.bus.address)
		clear(data)
		copy(data, latch[offset:])
		return
	}
	n, function, register, ok := p.target(offset)
	if !ok {
		n = Slots // nobody
	}
	p.bus.read(n, function, register, data)
}

func (p configPorts) Write(offset uint64, data []byte) {
	if offset < 4 {
		if offset == 0 && len(data) == 4 {
			p.bus.mu.Lock()
			p.bus.address = binary.LittleEndian.Uint32(data)
			p.bus.mu.Unlock()
		}
		return
	}
	if n, function, register, ok := p.target(offset); ok {
		p.bus.write(n, function, register, data)
	}
}
