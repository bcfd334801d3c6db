package boot

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/cleave-project/cleave/vmm/memory"
)

func ram(t testing.TB, size uint64) *memory.Memory {
	t.Helper()
	m, err := memory.New(size, memory.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// bzImage is the smallest file that says of itself what a kernel says.
func bzImage(change func(head []byte)) []byte {
	b := make([]byte, 1024+4096)
	le := binary.LittleEndian
	b[hdrSetupSects] = 1
	le.PutUint16(b[hdrBootFlag:], 0xaa55)
	b[hdrJump], b[hdrJump+1] = 0xeb, 0x66
	le.PutUint32(b[hdrMagic:], headerMagic)
	le.PutUint16(b[hdrVersion:], 0x020f)
	le.PutUint32(b[hdrInitrdMax:], 0x7fffffff)
	b[hdrRelocatable] = 1
	le.PutUint16(b[hdrXLoadFlags:], xlfKernel64)
	le.PutUint32(b[hdrCommandSize:], 2047)
	le.PutUint64(b[hdrPrefAddress:], 0x1000000)
	le.PutUint32(b[hdrInitSize:], 8192)
	copy(b[1024:], "the kernel")
	if change != nil {
		change(b)
	}
	return b
}

func linux(kernel []byte, initrd string) Linux {
	return Linux{Kernel: bytes.NewReader(kernel), Size: int64(len(kernel)), Initrd: strings.NewReader(initrd), InitrdSize: int64(len(initrd)), Command: "console=ttyS0"}
}

func at(t *testing.T, m *memory.Memory, addr, n uint64) []byte {
	t.Helper()
	b, err := m.Slice(addr, n)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBzImageIsPlaced(t *testing.T) {
	m := ram(t, 64<<20)
	e, err := Load(m, linux(bzImage(nil), "initramfs"))
	if err != nil {
		t.Fatal(err)
	}
	if !e.Long || e.RIP != 0x1000200 || e.RSI != zeroPageAddr {
		t.Errorf("entry %+v", e)
	}
	if got := at(t, m, 0x1000000, 10); string(got) != "the kernel" {
		t.Errorf("at the kernel's address is %q", got)
	}
	zp := at(t, m, e.RSI, zeroPageSize)
	le := binary.LittleEndian
	initrd := uint64(le.Uint32(zp[hdrRamdisk:]))
	if got := at(t, m, initrd, 9); string(got) != "initramfs" || le.Uint32(zp[hdrRamdiskSize:]) != 9 {
		t.Errorf("the initramfs is %q", got)
	}
	if got := at(t, m, uint64(le.Uint32(zp[hdrCommand:])), 14); string(got) != "console=ttyS0\x00" {
		t.Errorf("the command line is %q", got)
	}
	if zp[zpE820Count] != 3 || le.Uint64(zp[zpE820+40:]) != 0x100000 || le.Uint64(zp[zpE820+48:]) != 63<<20 {
		t.Errorf("memory map of %d: % x", zp[zpE820Count], zp[zpE820:zpE820+60])
	}
	// The tables map an address to itself.
	pml4 := le.Uint64(at(t, m, e.CR3, 8))
	pdpt := le.Uint64(at(t, m, pml4&^0xfff+8, 8))
	if pd := le.Uint64(at(t, m, pdpt&^0xfff+16, 8)); pd != 1<<30|2<<21|0x83 {
		t.Errorf("1 GiB + 4 MiB is mapped to %#x", pd)
	}
}

func TestMemoryAboveTheHoleIsTold(t *testing.T) {
	got := memoryMap(ram(t, 4<<30))
	if last := got[len(got)-1]; last != (area{4 << 30, 1 << 30, usable}) {
		t.Errorf("got %+v", got)
	}
}

func TestWhatCantBootIsRefused(t *testing.T) {
	le := binary.LittleEndian
	for name, c := range map[string]struct {
		kernel []byte
		initrd int
		memory uint64
		want   string
	}{
		"no kernel":        {make([]byte, 8192), 0, 64 << 20, "no bootable Linux kernel"},
		"nearly nothing":   {[]byte("MZxx"), 0, 64 << 20, "no bootable Linux kernel"},
		"too old":          {bzImage(func(b []byte) { le.PutUint16(b[hdrVersion:], 0x0204) }), 0, 64 << 20, "too old"},
		"32 bit":           {bzImage(func(b []byte) { b[hdrXLoadFlags] = 0 }), 0, 64 << 20, "no 64-bit one"},
		"cut":              {bzImage(nil)[:1024], 0, 64 << 20, "ends in its header"},
		"too little":       {bzImage(nil), 0, 16 << 20, "the guest has 16 MiB"},
		"large initramfs":  {bzImage(nil), 60 << 20, 64 << 20, "too few"},
		"wants the moon":   {bzImage(func(b []byte) { le.PutUint64(b[hdrPrefAddress:], 1<<62) }), 0, 64 << 20, "wants"},
		"wants the bottom": {bzImage(func(b []byte) { le.PutUint64(b[hdrPrefAddress:], 0); b[hdrRelocatable] = 0 }), 0, 64 << 20, "wants"},
		"firmware":         {append(append(make([]byte, 40), "_FVH"...), make([]byte, 8192)...), 0, 64 << 20, "with QEMU"},
		"ELF of nothing":   {append([]byte("\x7fELF"), make([]byte, 100)...), 0, 64 << 20, "no bootable Linux kernel"},
	} {
		l := linux(c.kernel, strings.Repeat("x", c.initrd))
		if _, err := Load(ram(t, c.memory), l); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	l := linux(bzImage(nil), "")
	l.Command = strings.Repeat("c", 3000)
	if _, err := Load(ram(t, 64<<20), l); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("long command line: got %v", err)
	}
}

// pvh is an ELF file with one segment and the note of its entry.
func pvh(paddr, entry uint64) []byte {
	le := binary.LittleEndian
	b := make([]byte, 64+2*56)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 2)
	le.PutUint16(b[18:], 62)
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[32:], 64)
	le.PutUint16(b[52:], 64)
	le.PutUint16(b[54:], 56)
	le.PutUint16(b[56:], 2)
	le.PutUint16(b[58:], 64)
	segment := func(i int, kind uint32, off, addr, size uint64) {
		p := b[64+56*i:]
		le.PutUint32(p, kind)
		le.PutUint64(p[8:], off)
		le.PutUint64(p[16:], addr)
		le.PutUint64(p[24:], addr)
		le.PutUint64(p[32:], size)
		le.PutUint64(p[40:], size)
		le.PutUint64(p[48:], 4)
	}
	segment(0, 1, 0, paddr, 64)
	segment(1, 4, uint64(len(b)), 0, 24)
	b = le.AppendUint32(b, 4)
	b = le.AppendUint32(b, 8)
	b = le.AppendUint32(b, notePhysEntry)
	b = append(b, "Xen\x00"...)
	return le.AppendUint64(b, entry)
}

func TestPVHIsPlaced(t *testing.T) {
	m := ram(t, 64<<20)
	e, err := Load(m, linux(pvh(0x1000000, 0x1000010), "initramfs"))
	if err != nil {
		t.Fatal(err)
	}
	if e.Long || e.RIP != 0x1000010 || e.RBX != startInfoAddr {
		t.Errorf("entry %+v", e)
	}
	info := at(t, m, e.RBX, 56+32)
	le := binary.LittleEndian
	if got := at(t, m, le.Uint64(info[56:]), 9); string(got) != "initramfs" {
		t.Errorf("the module is %q", got)
	}
	for name, b := range map[string][]byte{
		"below":    pvh(0x1000, 0x1010),
		"above":    pvh(1<<40, 1<<40),
		"no entry": pvh(0x1000000, 0),
		"far":      pvh(0x1000000, 1<<50),
	} {
		if _, err := Load(ram(t, 64<<20), linux(b, "")); err == nil {
			t.Errorf("%s: it boots", name)
		}
	}
}

func FuzzLoad(f *testing.F) {
	f.Add(bzImage(nil))
	f.Add(pvh(0x1000000, 0x1000010))
	m := ram(f, 64<<20)
	f.Fuzz(func(t *testing.T, kernel []byte) {
		if e, err := Load(m, linux(kernel, "initramfs")); err == nil {
			if _, err := m.Slice(e.RIP, 1); err != nil {
				t.Errorf("the entry is %v", err)
			}
		}
	})
}
