package boot

import (
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/cleave-project/cleave/vmm/memory"
)

// The header of a Multiboot image (Multiboot Specification 0.6.96, 3.1): in
// its first 8 KiB, at a multiple of 4.
const (
	mbSearch   = 8192
	mbMagic    = 0x1badb002
	mbLoaded   = 0x2badb002 // in EAX (3.2)
	mbAlign    = 1 << 0     // modules begin at pages, which they do anyway
	mbMemory   = 1 << 1     // memory is told of, which it is anyway
	mbRequired = 0xffff     // of the flags: those that a loader has to know
	mbAddress  = 1 << 16    // the header says where to load to

)

// Flags of the boot information (3.3), and where its parts are from its start.
const (
	infoMemory  = 1 << 0
	infoCommand = 1 << 2
	infoModules = 1 << 3
	infoMap     = 1 << 6
	infoLoader  = 1 << 9

	infoSize   = 120
	moduleSize = 16
	mapEntry   = 24 // with the 4 bytes of its size before it
	loaderName = "cleave\x00"
	// lowFree and lowFreeEnd are what of the first MiB an image may take.
	lowFree, lowFreeEnd = 0x8000, commandAddr

	// programName stands before the arguments, as the loader's name for the
	// kernel does in other loaders: a guest takes it for itself.
	programName = "kernel "
)

// multibootHeader is one that was found.
type multibootHeader struct {
	at    uint32 // in the file
	flags uint32
	// With mbAddress.
	header, load, loadEnd, bssEnd, entry uint32
}

// findMultiboot looks for a header in a kernel's file.
func findMultiboot(l Linux) (*multibootHeader, bool, error) {
	b := make([]byte, max(min(l.Size, mbSearch), 0))
	if _, err := l.Kernel.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, false, fmt.Errorf("read the kernel: %w", err)
	}
	le := binary.LittleEndian
	for i := 0; i+12 <= len(b); i += 4 {
		magic, flags, sum := le.Uint32(b[i:]), le.Uint32(b[i+4:]), le.Uint32(b[i+8:])
		if magic != mbMagic || magic+flags+sum != 0 {
			continue
		}
		h := &multibootHeader{at: uint32(i), flags: flags}
		if flags&mbAddress != 0 {
			if i+32 > len(b) {
				return nil, false, errors.New("the kernel's Multiboot header is cut")
			}
			for j, to := range []*uint32{&h.header, &h.load, &h.loadEnd, &h.bssEnd, &h.entry} {
				*to = le.Uint32(b[i+12+4*j:])
			}
		}
		return h, true, nil
	}
	return nil, false, nil
}

// loadMultiboot puts a Multiboot image into memory, which is entered in 32-bit
// protected mode without paging (3.2). An initramfs is its one module.
func loadMultiboot(m *memory.Memory, l Linux, h *multibootHeader) (*Entry, error) {
	if unknown := h.flags & mbRequired &^ (mbAlign | mbMemory); unknown != 0 {
		return nil, fmt.Errorf("the Multiboot kernel requires what there isn't: flags %#x (a video mode is 0x4)", unknown)
	}
	var entry, used uint64
	var err error
	if h.flags&mbAddress != 0 {
		entry, used, err = loadFlat(m, l, h)
	} else {
		entry, used, err = loadELF(m, l)
	}
	if err != nil {
		return nil, err
	}
	if _, err := m.Slice(entry, 1); err != nil || !mayTake(entry, 1) || entry > math.MaxUint32 {
		return nil, fmt.Errorf("the kernel's entry %#x is where no kernel is", entry)
	}
	initrd, err := placeInitrd(m, l, m.Regions()[0].End()-1, used)
	if err != nil {
		return nil, err
	}
	command := append([]byte(programName+l.Command), 0)
	if len(command) > commandMax {
		return nil, fmt.Errorf("a command line of %d bytes is too long", len(l.Command))
	}
	if err := errors.Join(m.Write(command, commandAddr), m.Write(bootInformation(m, initrd, l), startInfoAddr)); err != nil {
		return nil, err
	}
	return &Entry{RIP: entry, RAX: mbLoaded, RBX: startInfoAddr}, nil
}

// mayTake tells whether an image may have n bytes at an address: all above the
// first MiB, and of that what is free.
func mayTake(addr, n uint64) bool {
	return addr >= highAddr || addr >= lowFree && addr < lowFreeEnd && n <= lowFreeEnd-addr
}

// loadFlat loads by the addresses in the header (3.1.3).
func loadFlat(m *memory.Memory, l Linux, h *multibootHeader) (entry, used uint64, err error) {
	if !mayTake(uint64(h.load), 1) || h.header < h.load || h.header-h.load > h.at {
		return 0, 0, fmt.Errorf("the Multiboot kernel is for %#x, its header for %#x", h.load, h.header)
	}
	from := int64(h.at - (h.header - h.load))
	size := l.Size - from
	if h.loadEnd != 0 {
		if h.loadEnd < h.load || int64(h.loadEnd-h.load) > size {
			return 0, 0, fmt.Errorf("the Multiboot kernel is to be loaded from %#x up to %#x, and has %d bytes", h.load, h.loadEnd, size)
		}
		size = int64(h.loadEnd - h.load)
	}
	if h.bssEnd != 0 && int64(h.bssEnd) < int64(h.load)+size {
		return 0, 0, fmt.Errorf("the Multiboot kernel ends at %#x, in what is loaded", h.bssEnd)
	}
	used = max(uint64(h.load)+uint64(size), uint64(h.bssEnd))
	if !mayTake(uint64(h.load), used-uint64(h.load)) {
		return 0, 0, fmt.Errorf("the Multiboot kernel is for %#x up to %#x, where other things are", h.load, used)
	}
	if _, err := m.Slice(uint64(h.load), used-uint64(h.load)); err != nil {
		return 0, 0, fmt.Errorf("the guest has too little memory for its kernel: %w", err)
	}
	return uint64(h.entry), max(used, highAddr), readInto(m, io.NewSectionReader(l.Kernel, from, size), size, uint64(h.load), "kernel")
}

// loadELF loads the segments of an ELF file, whose entry may be a virtual
// address.
func loadELF(m *memory.Memory, l Linux) (entry, used uint64, err error) {
	f, err := openELF(l)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	entry, used = f.Entry, highAddr
	for _, p := range f.Progs {
		if p.Type != elf.PT_LOAD {
			continue
		}
		if p.Memsz == 0 {
			continue
		}
		if !mayTake(p.Paddr, p.Memsz) {
			return 0, 0, fmt.Errorf("the kernel has a segment of %d bytes for %#x", p.Memsz, p.Paddr)
		}
		if err := loadSegment(m, p); err != nil {
			return 0, 0, err
		}
		used = max(used, p.Paddr+p.Memsz)
		if off := f.Entry - p.Vaddr; f.Entry >= p.Vaddr && off < p.Memsz {
			entry = p.Paddr + off
		}
	}
	return entry, used, nil
}

// bootInformation is what the kernel is told (3.3), with the lists behind it.
func bootInformation(m *memory.Memory, initrd uint64, l Linux) []byte {
	le := binary.LittleEndian
	b := make([]byte, infoSize+moduleSize)
	flags := uint32(infoMemory | infoCommand | infoMap | infoLoader)
	areas := memoryMap(m)
	le.PutUint32(b[4:], uint32(areas[0].size>>10))
	le.PutUint32(b[8:], uint32((m.Regions()[0].End()-highAddr)>>10))
	le.PutUint32(b[16:], commandAddr)
	if initrd != 0 {
		flags |= infoModules
		le.PutUint32(b[20:], 1)
		le.PutUint32(b[24:], startInfoAddr+infoSize)
		le.PutUint32(b[infoSize:], uint32(initrd))
		le.PutUint32(b[infoSize+4:], uint32(initrd)+uint32(l.InitrdSize))
	}
	le.PutUint32(b[44:], uint32(len(areas)*mapEntry))
	le.PutUint32(b[48:], startInfoAddr+infoSize+moduleSize)
	for _, a := range areas {
		b = le.AppendUint32(b, mapEntry-4)
		b = le.AppendUint64(b, a.addr)
		b = le.AppendUint64(b, a.size)
		b = le.AppendUint32(b, a.kind)
	}
	le.PutUint32(b[64:], startInfoAddr+uint32(len(b)))
	le.PutUint32(b, flags)
	return append(b, loaderName...)
}
