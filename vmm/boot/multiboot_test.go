package boot

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// flat is a Multiboot image whose header says where to load it, n bytes into
// the file.
func flat(n int, change func(words []uint32)) []byte {
	w := []uint32{mbMagic, mbAddress | mbAlign | mbMemory, 0, 0x200000 + uint32(n), 0x200000, 0, 0x300000, 0x200000 + uint32(n) + 32}
	if change != nil {
		change(w)
	}
	w[2] = -(w[0] + w[1])
	b := make([]byte, n)
	for _, v := range w {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return append(b, "code"...)
}

// elf32 is an ELF file with a Multiboot header in its one segment, whose
// virtual address is above its physical one.
func elf32(flags uint32) []byte { return elf32At(0x200000, flags) }

func elf32At(at, flags uint32) []byte {
	le := binary.LittleEndian
	b := make([]byte, 52+32)
	copy(b, "\x7fELF\x01\x01\x01")
	le.PutUint16(b[16:], 2)
	le.PutUint16(b[18:], 3)
	le.PutUint32(b[20:], 1)
	le.PutUint32(b[24:], 0xc000000c+at) // entry
	le.PutUint32(b[28:], 52)
	le.PutUint16(b[40:], 52)
	le.PutUint16(b[42:], 32)
	le.PutUint16(b[44:], 1)
	le.PutUint16(b[46:], 40)
	p := b[52:]
	for i, v := range []uint32{1, uint32(len(b)), 0xc0000000 + at, at, 16, 0x1000, 5, 4} {
		le.PutUint32(p[4*i:], v)
	}
	sum := mbMagic + flags
	for _, v := range []uint32{mbMagic, flags, -sum} {
		b = le.AppendUint32(b, v)
	}
	return append(b, "code"...)
}

func TestMultibootIsPlaced(t *testing.T) {
	for name, c := range map[string]struct {
		image []byte
		entry uint64
	}{
		"flat":                  {flat(64, nil), 0x200000 + 64 + 32},
		"an ELF file":           {elf32(0), 0x20000c},
		"one in the first MiB":  {elf32At(0x8000, 0), 0x800c},
		"in the first MiB":      {flat(0, func(w []uint32) { w[3], w[4], w[6], w[7] = 0x8000, 0x8000, 0x10000, 0x8020 }), 0x8020},
		"flat, without its end": {flat(0, func(w []uint32) { w[6] = 0 }), 0x200020},
	} {
		t.Run(name, func(t *testing.T) {
			m := ram(t, 64<<20)
			l := linux(c.image, "module")
			e, err := Load(m, l)
			if err != nil {
				t.Fatal(err)
			}
			want := &Entry{RIP: c.entry, RAX: mbLoaded, RBX: startInfoAddr, GDT: gdtAddr, GDTLimit: 39}
			if diff := cmp.Diff(want, e); diff != "" {
				t.Error(diff)
			}
			if got := at(t, m, c.entry, 4); string(got) != "code" {
				t.Errorf("at the entry is %q", got)
			}
			le := binary.LittleEndian
			info := at(t, m, e.RBX, infoSize)
			if le.Uint32(info) != infoMemory|infoCommand|infoModules|infoMap|infoLoader || le.Uint32(info[4:]) != 639 || le.Uint32(info[8:]) != 63<<10 {
				t.Errorf("information % x", info)
			}
			if got := at(t, m, uint64(le.Uint32(info[16:])), 21); string(got) != "kernel console=ttyS0\x00" {
				t.Errorf("the command line is %q", got)
			}
			module := at(t, m, uint64(le.Uint32(info[24:])), moduleSize)
			if start, end := le.Uint32(module), le.Uint32(module[4:]); end-start != 6 || string(at(t, m, uint64(start), 6)) != "module" {
				t.Errorf("the module is from %#x to %#x", start, end)
			}
			list := at(t, m, uint64(le.Uint32(info[48:])), uint64(le.Uint32(info[44:])))
			if len(list) != 3*24 || le.Uint32(list) != 20 || le.Uint64(list[52:]) != highAddr || le.Uint32(list[68:]) != usable {
				t.Errorf("memory map % x", list)
			}
			if got := at(t, m, uint64(le.Uint32(info[64:])), 7); string(got) != loaderName {
				t.Errorf("the loader is %q", got)
			}
		})
	}
}

func TestMultibootThatCantBootIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		image []byte
		want  string
	}{
		"a video mode":        {flat(0, func(w []uint32) { w[1] |= 4 }), "a video mode"},
		"for the first MiB":   {flat(0, func(w []uint32) { w[4] = 0x1000 }), "is for 0x1000"},
		"for the ROMs":        {flat(0, func(w []uint32) { w[3], w[4], w[6], w[7] = 0xe0000, 0xe0000, 0, 0xe0020 }), "is for 0xe0000"},
		"into what is told":   {flat(0, func(w []uint32) { w[3], w[4], w[6], w[7] = 0x8000, 0x8000, 0x20001, 0x8020 }), "other things"},
		"header before load":  {flat(0, func(w []uint32) { w[3] = 0x1f0000 }), "its header"},
		"more than there is":  {flat(0, func(w []uint32) { w[5] = 0x400000 }), "has 36 bytes"},
		"end before start":    {flat(0, func(w []uint32) { w[5] = 0x100000 }), "up to 0x100000"},
		"memory before end":   {flat(0, func(w []uint32) { w[6] = 0x200004 }), "in what is loaded"},
		"too little memory":   {flat(0, func(w []uint32) { w[6] = 0xfffffff0 }), "too little memory"},
		"entry elsewhere":     {flat(0, func(w []uint32) { w[7] = 0xf0000000 }), "entry"},
		"cut header":          {flat(0, nil)[:20], "cut"},
		"of another file":     {flat(8192, nil), "no bootable"},
		"an ELF for the ROMs": {elf32At(0xe0000, 0), "for 0xe0000"},
		"an ELF for video":    {elf32(4), "a video mode"},
	} {
		if _, err := Load(ram(t, 64<<20), linux(c.image, "")); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	l := linux(flat(0, nil), "")
	l.Command = strings.Repeat("c", commandMax-3)
	if _, err := Load(ram(t, 64<<20), l); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("long command line: got %v", err)
	}
}

// PVH tells more, so it is taken where both could be.
func TestPVHIsPreferredToMultiboot(t *testing.T) {
	b := pvh(0x1000000, 0x1000010)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	b = append(b, flat(0, nil)...)
	e, err := Load(ram(t, 64<<20), Linux{Kernel: bytes.NewReader(b), Size: int64(len(b))})
	if err != nil || e.RAX != 0 || e.RIP != 0x1000010 {
		t.Errorf("%+v, %v", e, err)
	}
}

func FuzzMultiboot(f *testing.F) {
	f.Add(flat(64, nil))
	f.Add(elf32(0))
	m := ram(f, 64<<20)
	f.Fuzz(func(t *testing.T, kernel []byte) {
		l := linux(kernel, "module")
		h, ok, err := findMultiboot(l)
		if err != nil || !ok {
			return
		}
		if e, err := loadMultiboot(m, l, h); err == nil {
			if _, err := m.Slice(e.RIP, 1); err != nil || !mayTake(e.RIP, 1) {
				t.Errorf("the entry is %#x: %v", e.RIP, err)
			}
		}
	})
}
