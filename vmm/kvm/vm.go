package kvm

import (
	"fmt"
	"os"
	"unsafe"
)

// VM is a virtual machine.
type VM struct {
	sys  *System
	file *os.File
	// rings is how many pages the ring of each vCPU has room for, 0 without.
	rings uint64
}

// Close lets go of the machine; it ends with its last vCPU.
func (v *VM) Close() error { return v.file.Close() }

// Check is System.Check, for capabilities that depend on the machine.
func (v *VM) Check(c Cap) (int, error) { return ioctl(v.file, kvmCheckExtension, uintptr(c)) }

// Flags of memory.
const (
	MemLogDirty uint32 = 1 << 0 // remember which pages are written
	MemReadOnly uint32 = 1 << 1 // writes exit as MMIO
)

// SetMemory maps host memory into the guest at a physical address, as a slot
// of its own. A nil host removes the slot. All must be whole pages.
func (v *VM) SetMemory(slot uint32, flags uint32, guest uint64, host []byte) error {
	r := struct {
		slot, flags       uint32
		guest, size, user uint64
	}{slot: slot, flags: flags, guest: guest, size: uint64(len(host))}
	if len(host) > 0 {
		r.user = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(host))))
	}
	if err := ioctlPtr(v.file, kvmSetUserMemoryRegion, unsafe.Pointer(&r)); err != nil {
		return fmt.Errorf("map %d bytes at %#x (slot %d): %w", len(host), guest, slot, err)
	}
	return nil
}

// DirtyLog fills bitmap, a bit for each page of the slot, with what was
// written since the last call (api.rst, 4.8).
func (v *VM) DirtyLog(slot uint32, bitmap []uint64) error {
	m := struct {
		slot, pad uint32
		bitmap    unsafe.Pointer
	}{slot: slot, bitmap: unsafe.Pointer(unsafe.SliceData(bitmap))}
	if err := ioctlPtr(v.file, kvmGetDirtyLog, unsafe.Pointer(&m)); err != nil {
		return fmt.Errorf("read the dirty pages of slot %d: %w", slot, err)
	}
	return nil
}

// Where KVM may put pages of its own that Intel processors need to run real
// mode (api.rst, 4.39 and 4.41): above the reach of memory below 4 GiB, as
// firmware has it.
const (
	identityMapAddr = 0xfeffc000
	tssAddr         = 0xfeffd000
)

// ReservePages gives KVM those places. It comes before the first vCPU.
func (v *VM) ReservePages() error {
	addr := uint64(identityMapAddr)
	if err := ioctlPtr(v.file, kvmSetIdentityMapAddr, unsafe.Pointer(&addr)); err != nil {
		return fmt.Errorf("place the identity map: %w", err)
	}
	if _, err := ioctl(v.file, kvmSetTSSAddr, tssAddr); err != nil {
		return fmt.Errorf("place the task state segment: %w", err)
	}
	return nil
}

// CreateIRQChip makes the two PICs, the I/O APIC and, for vCPUs made after
// it, the local APICs, all in the kernel. It reserves the pages too.
func (v *VM) CreateIRQChip() error {
	if err := v.ReservePages(); err != nil {
		return err
	}
	if _, err := ioctl(v.file, kvmCreateIRQChip, 0); err != nil {
		return fmt.Errorf("create the interrupt controllers: %w", err)
	}
	return nil
}

// IRQLine sets the level of an interrupt line.
func (v *VM) IRQLine(gsi uint32, level bool) error {
	m := [2]uint32{gsi, 0}
	if level {
		m[1] = 1
	}
	if err := ioctlPtr(v.file, kvmIRQLine, unsafe.Pointer(&m)); err != nil {
		return fmt.Errorf("set interrupt line %d: %w", gsi, err)
	}
	return nil
}

// IRQFD has the kernel raise an interrupt (an edge of it) whenever eventfd
// counts. on is false to end that.
func (v *VM) IRQFD(eventfd int, gsi uint32, on bool) error {
	m := struct {
		fd, gsi, flags, resample uint32
		pad                      [16]byte
	}{fd: uint32(eventfd), gsi: gsi}
	if !on {
		m.flags = 1 // KVM_IRQFD_FLAG_DEASSIGN
	}
	if err := ioctlPtr(v.file, kvmIRQFD, unsafe.Pointer(&m)); err != nil {
		return fmt.Errorf("bind an event to interrupt %d: %w", gsi, err)
	}
	return nil
}

// IOEvent is a write of the guest that the kernel turns into a count of an
// eventfd, without an exit.
type IOEvent struct {
	Addr    uint64
	Size    uint32 // of the write in bytes; 0 for any
	Port    bool   // an I/O port, not memory
	Match   bool   // only if Value is written
	Value   uint64
	EventFD int
}

// IOEventFD adds such a write, or with on false ends it.
func (v *VM) IOEventFD(e IOEvent, on bool) error {
	m := struct {
		value, addr uint64
		size        uint32
		fd          int32
		flags       uint32
		pad         [36]byte
	}{value: e.Value, addr: e.Addr, size: e.Size, fd: int32(e.EventFD)}
	for i, set := range []bool{e.Match, e.Port, !on} {
		if set {
			m.flags |= 1 << i
		}
	}
	if err := ioctlPtr(v.file, kvmIOEventFD, unsafe.Pointer(&m)); err != nil {
		return fmt.Errorf("bind writes to %#x to an event: %w", e.Addr, err)
	}
	return nil
}

// Route says what an interrupt number leads to: a pin of an interrupt
// controller or, with MSI, a message.
type Route struct {
	GSI uint32
	// Chip is 0 or 1 for the PICs, 2 for the I/O APIC.
	Chip, Pin uint32
	MSI       bool
	Addr      uint64 // of the message
	Data      uint32
}

// maxRoutes is KVM_MAX_IRQ_ROUTES.
const maxRoutes = 4096

// SetRoutes replaces all routes.
func (v *VM) SetRoutes(routes []Route) error {
	if len(routes) > maxRoutes {
		return fmt.Errorf("%d interrupt routes are too many", len(routes))
	}
	type entry struct {
		gsi, kind uint32
		_         [2]uint32 // flags and padding
		u         [8]uint32
	}
	// The header is 8 bytes before the first entry: the end of another.
	m := make([]entry, 1+len(routes))
	header := &m[0].u[6]
	*header = uint32(len(routes))
	for i, r := range routes {
		e := &m[1+i]
		e.gsi, e.kind = r.GSI, 1 // KVM_IRQ_ROUTING_IRQCHIP
		e.u[0], e.u[1] = r.Chip, r.Pin
		if r.MSI {
			e.kind = 2 // KVM_IRQ_ROUTING_MSI
			e.u[0], e.u[1], e.u[2] = uint32(r.Addr), uint32(r.Addr>>32), r.Data
		}
	}
	if err := ioctlPtr(v.file, kvmSetGSIRouting, unsafe.Pointer(header)); err != nil {
		return fmt.Errorf("set %d interrupt routes: %w", len(routes), err)
	}
	return nil
}

// SignalMSI delivers a message at once. It tells whether the guest took it.
func (v *VM) SignalMSI(addr uint64, data uint32) (delivered bool, err error) {
	m := struct {
		lo, hi, data, flags, devid uint32
		pad                        [12]byte
	}{lo: uint32(addr), hi: uint32(addr >> 32), data: data}
	n, err := ioctlCount(v.file, kvmSignalMSI, unsafe.Pointer(&m))
	if err != nil {
		return false, fmt.Errorf("signal an interrupt message: %w", err)
	}
	return n > 0, nil
}

// Clock is kvm-clock's time in nanoseconds.
func (v *VM) Clock() (ClockData, error) {
	var c ClockData
	if err := ioctlPtr(v.file, kvmGetClock, unsafe.Pointer(&c)); err != nil {
		return c, fmt.Errorf("read the guest's clock: %w", err)
	}
	return c, nil
}

// SetClock sets it. Flags in c other than ClockRealtime are not the kernel's
// to take back.
func (v *VM) SetClock(c ClockData) error {
	c.Flags &= ClockRealtime
	if err := ioctlPtr(v.file, kvmSetClock, unsafe.Pointer(&c)); err != nil {
		return fmt.Errorf("set the guest's clock: %w", err)
	}
	return nil
}

// IRQChip reads the state of PIC 0 or 1, or the I/O APIC (2).
func (v *VM) IRQChip(chip uint32) (IRQChip, error) {
	c := IRQChip{ID: chip}
	if err := ioctlPtr(v.file, kvmGetIRQChip, unsafe.Pointer(&c)); err != nil {
		return c, fmt.Errorf("read interrupt controller %d: %w", chip, err)
	}
	return c, nil
}

// SetIRQChip writes it.
func (v *VM) SetIRQChip(c IRQChip) error {
	if err := ioctlPtr(v.file, kvmSetIRQChip, unsafe.Pointer(&c)); err != nil {
		return fmt.Errorf("write interrupt controller %d: %w", c.ID, err)
	}
	return nil
}
