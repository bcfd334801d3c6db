// Package bus finds the device that an access of the guest is for: one Bus
// for I/O ports, one for memory that isn't there.
package bus

import (
	"fmt"
	"slices"
	"sync"
)

// Device answers accesses to a range. Offsets are from its start; an access
// never reaches beyond its end. Data is little-endian, 1 to 8 bytes. Calls
// come from the vCPUs' threads, at the same time.
type Device interface {
	Read(offset uint64, data []byte)
	Write(offset uint64, data []byte)
}

// Bus maps ranges of addresses to devices.
type Bus struct {
	mu     sync.RWMutex
	ranges []entry // by address, without overlap
}

type entry struct {
	from, size uint64
	device     Device
}

// Add gives a range to a device.
func (b *Bus) Add(from, size uint64, d Device) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := b.after(from)
	if size == 0 || from+size < from || i < len(b.ranges) && from+size > b.ranges[i].from || i > 0 && b.ranges[i-1].from+b.ranges[i-1].size > from {
		return fmt.Errorf("%d bytes at %#x are taken, or none", size, from)
	}
	b.ranges = slices.Insert(b.ranges, i, entry{from, size, d})
	return nil
}

// Remove takes the range that begins at an address back.
func (b *Bus) Remove(from uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ranges = slices.DeleteFunc(b.ranges, func(e entry) bool { return e.from == from })
}

// after is the index of the first range that begins behind addr.
func (b *Bus) after(addr uint64) int {
	i, _ := slices.BinarySearchFunc(b.ranges, addr, func(e entry, a uint64) int {
		if e.from > a {
			return 1
		}
		return -1
	})
	return i
}

// find returns the device that has all n bytes at addr.
func (b *Bus) find(addr uint64, n int) (Device, uint64) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if i := b.after(addr) - 1; i >= 0 {
		e := b.ranges[i]
		if off := addr - e.from; off < e.size && uint64(n) <= e.size-off {
			return e.device, off
		}
	}
	return nil, 0
}

// Read lets the guest read. Where nobody is, all bits are set.
func (b *Bus) Read(addr uint64, data []byte) {
	if d, off := b.find(addr, len(data)); d != nil {
		d.Read(off, data)
		return
	}
	for i := range data {
		data[i] = 0xff
	}
}

// Write lets the guest write. Where nobody is, it goes nowhere.
func (b *Bus) Write(addr uint64, data []byte) {
	if d, off := b.find(addr, len(data)); d != nil {
		d.Write(off, data)
	}
}
