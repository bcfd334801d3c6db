package kernel

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"strings"
)

// withoutDebug is a module without what only a debugger reads, three quarters
// of those of Debian's User Mode Linux. The sections stay in the table, since
// symbols count them, as SHT_NULL, which Linux passes by (kernel/module/main.c:
// elf_validity_check). What isn't understood is left as it is.
func withoutDebug(module []byte) []byte {
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil || f.Class != elf.ELFCLASS64 || f.ByteOrder != binary.LittleEndian || f.Type != elf.ET_REL {
		return module
	}
	var head elf.Header64
	size, err := binary.Decode(module, f.ByteOrder, &head)
	if err != nil || int(head.Shnum) != len(f.Sections) || head.Shoff > uint64(len(module)) {
		return module
	}
	table := make([]elf.Section64, len(f.Sections))
	if _, err := binary.Decode(module[head.Shoff:], f.ByteOrder, table); err != nil {
		return module
	}
	out := bytes.Clone(module[:size])
	for i := range table {
		s := &table[i]
		switch {
		case forDebuggers(f, i):
			*s = elf.Section64{}
		case elf.SectionType(s.Type) != elf.SHT_NULL && elf.SectionType(s.Type) != elf.SHT_NOBITS:
			if s.Addralign > maxAlign || s.Off > uint64(len(module)) || s.Size > uint64(len(module))-s.Off {
				return module
			}
			content := module[s.Off:][:s.Size]
			out = aligned(out, int(s.Addralign))
			s.Off = uint64(len(out))
			if out = append(out, content...); len(out) > len(module) {
				return module // sections that share what they have
			}
		}
	}
	out = aligned(out, 8)
	head.Shoff = uint64(len(out))
	out, err = binary.Append(out, f.ByteOrder, table)
	if err == nil {
		_, err = binary.Encode(out, f.ByteOrder, &head)
	}
	if err != nil || len(out) >= len(module) {
		return module
	}
	return out
}

// maxAlign is more than any section of a module wants.
const maxAlign = 4 << 10

func aligned(b []byte, to int) []byte {
	if to < 2 {
		return b
	}
	return append(b, make([]byte, (to-len(b)%to)%to)...)
}

// forDebuggers tells whether a section, or the one that it relocates, is never
// loaded and has the name of what debuggers read.
func forDebuggers(f *elf.File, i int) bool {
	s := f.Sections[i]
	if s.Type == elf.SHT_RELA && int(s.Info) < len(f.Sections) { //nolint:misspell // as ELF calls it
		s = f.Sections[s.Info]
	}
	return s.Flags&elf.SHF_ALLOC == 0 && strings.HasPrefix(s.Name, ".debug_")
}
