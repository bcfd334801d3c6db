package kvm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The ring of a vCPU in which KVM notes pages that it has written (api.rst,
// 8.29): entries of 16 bytes, behind pages of the kernel's own.
const (
	ringEntry     = 16
	ringPage      = 64 // KVM_DIRTY_LOG_PAGE_OFFSET
	ringDirty     = 1  // KVM_DIRTY_GFN_F_DIRTY
	ringCollected = 2  // KVM_DIRTY_GFN_F_RESET
)

// RingSize is how many pages a ring holds: the kernel asks for a power of two,
// of 64 and what its own lists hold at least, and allows 65536.
const RingSize = 4096

// UseRings has pages that are written noted in a ring of each vCPU, instead of
// a bitmap for each slot: DirtyLog can't be asked then. It comes before the
// first vCPU, and behind System.CheckRings.
func (v *VM) UseRings() error { return v.useRings(RingSize) }

func (v *VM) useRings(entries uint64) error {
	m := struct {
		capability, flags uint32
		args              [4]uint64
		pad               [64]byte
	}{capability: uint32(CapDirtyRing), args: [4]uint64{entries * ringEntry}}
	if err := ioctlPtr(v.file, kvmEnableCap, unsafe.Pointer(&m)); err != nil {
		return fmt.Errorf("use rings for pages that are written: %w", err)
	}
	v.rings = entries
	return nil
}

// mapRing maps the ring of a vCPU.
func (c *VCPU) mapRing() (err error) {
	if c.ring, err = unix.Mmap(int(c.file.Fd()), ringPage*int64(unix.Getpagesize()), int(c.vm.rings)*ringEntry, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return fmt.Errorf("map the ring of vCPU %d: %w", c.ID, err)
	}
	return nil
}

// ErrRingLost is that pages may have been written of which a ring has nothing,
// since it was full.
var ErrRingLost = errors.New("a ring of written pages has overflowed")

// TakeDirty calls f with what the ring has: pages of slots that were written.
// They are noted again only after VM.ResetRings. One call at a time.
func (c *VCPU) TakeDirty(f func(slot uint32, page uint64)) error {
	for first := c.taken; ; {
		if c.taken-first == c.vm.rings {
			return fmt.Errorf("vCPU %d: %w", c.ID, ErrRingLost)
		}
		e := c.ring[c.taken%c.vm.rings*ringEntry:][:ringEntry]
		flags := (*uint32)(unsafe.Pointer(&e[0]))
		if atomic.LoadUint32(flags)&ringDirty == 0 {
			return nil
		}
		f(binary.NativeEndian.Uint32(e[4:]), binary.NativeEndian.Uint64(e[8:]))
		atomic.StoreUint32(flags, ringCollected)
		c.taken++
	}
}

// ResetRings has what was taken from rings be noted when it is written again.
func (v *VM) ResetRings() error {
	if _, err := ioctl(v.file, kvmResetDirtyRings, 0); err != nil {
		return fmt.Errorf("empty the rings of written pages: %w", err)
	}
	return nil
}
