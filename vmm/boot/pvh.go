package boot

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/cleave-project/cleave/vmm/memory"
)

// notePhysEntry is XEN_ELFNOTE_PHYS32_ENTRY: where to enter in 32-bit mode.
const notePhysEntry = 18

// Bounds of what an ELF file may say.
const (
	maxSegments = 64
	maxNotes    = 64 << 10
)

var errNoPVH = errors.New("the kernel is an ELF file without an entry for PVH (CONFIG_PVH), or a header of Multiboot")

// openELF opens a kernel that is an ELF file for this processor.
func openELF(l Linux) (*elf.File, error) {
	// debug/elf doesn't panic on hostile files as a rule, and here not at all.
	f, err := elf.NewFile(io.NewSectionReader(l.Kernel, 0, l.Size))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoKernel, err)
	}
	if f.Machine != elf.EM_X86_64 && f.Machine != elf.EM_386 || f.ByteOrder != binary.LittleEndian {
		return nil, fmt.Errorf("the kernel is for %v", f.Machine)
	}
	if len(f.Progs) > maxSegments {
		return nil, fmt.Errorf("the kernel has %d segments", len(f.Progs))
	}
	return f, nil
}

func loadPVH(m *memory.Memory, l Linux) (*Entry, error) {
	f, err := openELF(l)
	if err != nil {
		return nil, err
	}
	entry, err := findPhysEntry(f)
	if err != nil {
		return nil, err
	}
	used := uint64(highAddr)
	for _, p := range f.Progs {
		if p.Type != elf.PT_LOAD {
			continue
		}
		if p.Paddr < highAddr {
			return nil, fmt.Errorf("the kernel has a segment of %d bytes for %#x", p.Memsz, p.Paddr)
		}
		if err := loadSegment(m, p); err != nil {
			return nil, err
		}
		used = max(used, p.Paddr+p.Memsz)
	}
	if _, err := m.Slice(entry, 1); err != nil {
		return nil, fmt.Errorf("the kernel's entry: %w", err)
	}
	initrd, err := placeInitrd(m, l, m.Regions()[0].End()-1, used)
	if err != nil {
		return nil, err
	}
	if err := m.Write(startInfo(initrd, l, memoryMap(m)), startInfoAddr); err != nil {
		return nil, err
	}
	return &Entry{RIP: entry, RBX: startInfoAddr}, nil
}

// findPhysEntry looks for the entry in a file's notes.
func findPhysEntry(f *elf.File) (entry uint64, err error) {
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE {
			continue
		}
		if p.Filesz > maxNotes {
			return 0, fmt.Errorf("the kernel has %d bytes of notes", p.Filesz)
		}
		notes, err := io.ReadAll(p.Open())
		if err != nil {
			return 0, fmt.Errorf("read the kernel's notes: %w", err)
		}
		align := uint64(4)
		if p.Align == 8 {
			align = 8
		}
		if e, ok := physEntry(notes, align); ok {
			entry = e
		}
	}
	if entry == 0 {
		return 0, errNoPVH
	}
	return entry, nil
}

func loadSegment(m *memory.Memory, p *elf.Prog) error {
	if p.Filesz > p.Memsz {
		return fmt.Errorf("the kernel has a segment of %d bytes, and %d of them in its file", p.Memsz, p.Filesz)
	}
	if _, err := m.Slice(p.Paddr, p.Memsz); err != nil {
		return fmt.Errorf("the guest has too little memory for its kernel: %w", err)
	}
	return readInto(m, p.Open(), int64(p.Filesz), p.Paddr, "kernel")
}

// physEntry finds the note in a segment of notes (System V ABI, "Note Section").
func physEntry(b []byte, align uint64) (uint64, bool) {
	pad := func(n uint32) uint64 { return (uint64(n) + align - 1) / align * align }
	for len(b) >= 12 {
		name, desc, kind := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:]), binary.LittleEndian.Uint32(b[8:])
		b = b[12:]
		if pad(name) > uint64(len(b)) || uint64(desc) > uint64(len(b))-pad(name) {
			return 0, false
		}
		if kind == notePhysEntry && bytes.Equal(b[:name], []byte("Xen\x00")) && (desc == 4 || desc == 8) {
			d := append(bytes.Clone(b[pad(name):pad(name)+uint64(desc)]), 0, 0, 0, 0)
			return binary.LittleEndian.Uint64(d), true
		}
		b = b[min(pad(name)+pad(desc), uint64(len(b))):]
	}
	return 0, false
}

// startInfo is struct hvm_start_info, version 1, with its lists behind it.
func startInfo(initrd uint64, l Linux, areas []area) []byte {
	const size, module = 56, 32
	le := binary.LittleEndian
	b := make([]byte, size+module+24*len(areas))
	le.PutUint32(b, 0x336ec578)
	le.PutUint32(b[4:], 1)
	if initrd != 0 {
		le.PutUint32(b[12:], 1)
		le.PutUint64(b[16:], startInfoAddr+size)
		le.PutUint64(b[size:], initrd)
		le.PutUint64(b[size+8:], uint64(l.InitrdSize))
	}
	le.PutUint64(b[24:], commandAddr)
	le.PutUint64(b[32:], ACPIAddr)
	le.PutUint64(b[40:], startInfoAddr+size+module)
	le.PutUint32(b[48:], uint32(len(areas)))
	for i, a := range areas {
		e := b[size+module+24*i:]
		le.PutUint64(e, a.addr)
		le.PutUint64(e[8:], a.size)
		le.PutUint32(e[16:], a.kind)
	}
	return b
}
