// Package boot puts a kernel, its initramfs and what it wants to know into a
// guest's memory, and says in which state the first processor enters it:
// bzImages by Linux's 64-bit protocol (Documentation/arch/x86/boot.rst), ELF
// files by Xen's PVH (xen/include/public/arch-x86/hvm/start_info.h), and those
// that have its header by the Multiboot Specification 0.6.96, as the tests of
// KVM and small kernels do.
//
// Kernels and initramfs are the user's and may be anything: all that they say
// is checked against the memory that there is.
package boot

import (
	"errors"
	"fmt"
	"io"

	"github.com/cleave-project/cleave/vmm/memory"
)

// Where things are in the first MiB, which no kernel is loaded to.
const (
	gdtAddr       = 0x500
	zeroPageAddr  = 0x7000 // struct boot_params
	pageTableAddr = 0x9000 // PML4, PDPT, and four directories: up to 0xf000
	commandAddr   = 0x20000
	commandMax    = 64 << 10
	startInfoAddr = 0x6000 // struct hvm_start_info with its lists
	// ACPIAddr is where the tables go: the area in which a search for the
	// root pointer would find it too (ACPI 6.5, 5.2.5.1).
	ACPIAddr = 0xe0000
	// ACPISize is how much room they have.
	ACPISize = 0x20000
	highAddr = 0x100000
)

// Linux is what to boot.
type Linux struct {
	Kernel io.ReaderAt
	Size   int64     // of Kernel
	Initrd io.Reader // nil for none
	// InitrdSize is how long Initrd is.
	InitrdSize int64
	Command    string
}

// Entry is the state in which the first processor begins.
type Entry struct {
	// Long is 64-bit mode with paging; else 32-bit protected mode without.
	Long bool
	RIP  uint64
	// RSI and RBX point to what the kernel is told: one of them is set.
	RSI, RBX uint64
	RAX      uint64 // by which a Multiboot kernel knows its loader
	CR3      uint64 // with Long
	GDT      uint64 // address of the descriptors below
	GDTLimit uint16
}

// Selectors of the descriptors at Entry.GDT.
const (
	CodeSelector = 0x10 // __BOOT_CS
	DataSelector = 0x18 // __BOOT_DS
	TaskSelector = 0x20
)

// Load puts all of it into memory.
func Load(m *memory.Memory, l Linux) (*Entry, error) {
	magic := make([]byte, 4)
	if _, err := l.Kernel.ReadAt(magic, 0); err != nil {
		return nil, fmt.Errorf("read the kernel: %w", err)
	}
	if len(l.Command) >= commandMax {
		return nil, fmt.Errorf("a command line of %d bytes is too long", len(l.Command))
	}
	if err := m.Write(append([]byte(l.Command), 0), commandAddr); err != nil {
		return nil, fmt.Errorf("put the command line into memory: %w", err)
	}
	e, err := load(m, l, string(magic) == "\x7fELF")
	if err != nil {
		return nil, err
	}
	return e, writeDescriptors(m, e)
}

// load takes a kernel for what it says that it is. One that can be entered by
// PVH is, even if Multiboot could do it too.
func load(m *memory.Memory, l Linux, isELF bool) (*Entry, error) {
	h, multiboot, err := findMultiboot(l)
	switch {
	case err != nil:
		return nil, err
	case isFirmware(l):
		return nil, errFirmware
	case isELF && multiboot:
		if e, err := loadPVH(m, l); !errors.Is(err, errNoPVH) {
			return e, err
		}
		return loadMultiboot(m, l, h)
	case isELF:
		return loadPVH(m, l)
	case multiboot && !isBzImage(l):
		return loadMultiboot(m, l, h)
	}
	return loadBzImage(m, l)
}

var errFirmware = errors.New("it is UEFI firmware, of which none can be entered without the devices of QEMU's boards: run systems of their own with QEMU")

// isFirmware tells whether a file begins as a volume of firmware does (UEFI
// Platform Initialization 1.8, volume 3, 3.2.1.1).
func isFirmware(l Linux) bool {
	b := make([]byte, 4)
	_, err := l.Kernel.ReadAt(b, 40)
	return err == nil && string(b) == "_FVH"
}

// writeDescriptors writes the segments that both protocols ask for: flat
// ones, in the places that Linux expects.
func writeDescriptors(m *memory.Memory, e *Entry) error {
	code := uint64(0x00cf9b000000ffff) // 32 bit
	if e.Long {
		code = 0x00af9b000000ffff
	}
	const data, task = 0x00cf93000000ffff, 0x008f8b000000ffff
	e.GDT, e.GDTLimit = gdtAddr, 5*8-1
	for i, d := range []uint64{0, 0, code, data, task} {
		if err := put64(m, gdtAddr+uint64(i)*8, d); err != nil {
			return err
		}
	}
	return nil
}

// identityMap maps the first 4 GiB to themselves, in pages of 2 MiB.
func identityMap(m *memory.Memory) error {
	const table, present = 0x1000, 0x3 // present, writable
	if err := put64(m, pageTableAddr, pageTableAddr+table|present); err != nil {
		return err
	}
	for i := range uint64(4) {
		dir := pageTableAddr + (2+i)*table
		if err := put64(m, pageTableAddr+table+i*8, dir|present); err != nil {
			return err
		}
		for j := range uint64(512) {
			if err := put64(m, dir+j*8, i<<30|j<<21|present|1<<7); err != nil {
				return err
			}
		}
	}
	return nil
}

// readInto copies n bytes to memory at addr.
func readInto(m *memory.Memory, r io.Reader, n int64, addr uint64, what string) error {
	if n < 0 {
		return fmt.Errorf("%s has %d bytes", what, n)
	}
	b, err := m.Slice(addr, uint64(n))
	if err != nil {
		return fmt.Errorf("the guest has too little memory for its %s: %w", what, err)
	}
	if _, err := io.ReadFull(r, b); err != nil {
		return fmt.Errorf("read the %s: %w", what, err)
	}
	return nil
}

// placeInitrd puts the initramfs as high as may be, in whole pages, and
// above what is used already.
func placeInitrd(m *memory.Memory, l Linux, highest, used uint64) (addr uint64, err error) {
	if l.Initrd == nil || l.InitrdSize == 0 {
		return 0, nil
	}
	low := m.Regions()[0]
	top := min(low.End(), highest+1)
	size := uint64(l.InitrdSize)
	if l.InitrdSize < 0 || size > top || (top-size)&^(memory.PageSize-1) < used {
		return 0, fmt.Errorf("the guest's %d MiB of memory are too few for a kernel and %d MiB of initramfs", m.Size()>>20, size>>20)
	}
	addr = (top - size) &^ (memory.PageSize - 1)
	return addr, readInto(m, l.Initrd, l.InitrdSize, addr, "initramfs")
}

// area is a piece of the memory map: type 1 is memory, 2 is reserved, 3 are
// ACPI's tables (ACPI 6.5, 15).
type area struct {
	addr, size uint64
	kind       uint32
}

const (
	usable   = 1
	reserved = 2
)

// memoryMap is what the guest is told of its memory.
func memoryMap(m *memory.Memory) []area {
	out := []area{{0, 0x9fc00, usable}, {0x9fc00, highAddr - 0x9fc00, reserved}}
	for i, r := range m.Regions() {
		if r.Pluggable {
			continue
		}
		from := r.Guest
		if i == 0 {
			from = highAddr
		}
		out = append(out, area{from, r.End() - from, usable})
	}
	return out
}

func put64(m *memory.Memory, addr, v uint64) error {
	b := [8]byte{byte(v), byte(v >> 8), byte(v >> 16), byte(v >> 24), byte(v >> 32), byte(v >> 40), byte(v >> 48), byte(v >> 56)}
	return m.Write(b[:], addr)
}
