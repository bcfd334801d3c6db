package boot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/cleave-project/cleave/vmm/memory"
)

// Offsets in the setup header, and so in the zero page (boot.rst, "The Real-Mode
// Kernel Header").
const (
	hdrSetupSects   = 0x1f1
	hdrBootFlag     = 0x1fe
	hdrJump         = 0x200 // its second byte is the header's length from here
	hdrMagic        = 0x202 // "HdrS"
	hdrVersion      = 0x206
	hdrLoader       = 0x210
	hdrLoadFlags    = 0x211
	hdrRamdisk      = 0x218
	hdrRamdiskSize  = 0x21c
	hdrCommand      = 0x228
	hdrInitrdMax    = 0x22c
	hdrRelocatable  = 0x234
	hdrXLoadFlags   = 0x236
	hdrCommandSize  = 0x238
	hdrPrefAddress  = 0x258
	hdrInitSize     = 0x260
	hdrEnd          = 0x290 // more than any header has
	headerMagic     = 0x53726448
	protocolLeast   = 0x020c // 2.12 has xloadflags
	xlfKernel64     = 1 << 0
	loadedHigh      = 1 << 0
	loaderUndefined = 0xff

	// In the zero page beside the header (Documentation/arch/x86/zero-page.rst).
	zpACPI       = 0x070
	zpE820Count  = 0x1e8
	zpE820       = 0x2d0
	e820Max      = 128
	entry64      = 0x200 // from where the kernel is loaded to
	zeroPageSize = 4096
)

var errNoKernel = errors.New("it is no bootable Linux kernel")

// isBzImage tells whether a file has Linux's header.
func isBzImage(l Linux) bool {
	b := make([]byte, 4)
	_, err := l.Kernel.ReadAt(b, hdrMagic)
	return err == nil && binary.LittleEndian.Uint32(b) == headerMagic
}

func loadBzImage(m *memory.Memory, l Linux) (*Entry, error) {
	head := make([]byte, hdrEnd)
	if _, err := l.Kernel.ReadAt(head, 0); err != nil {
		return nil, fmt.Errorf("read the kernel's header: %w: %w", errNoKernel, err)
	}
	u16 := func(off int) uint16 { return binary.LittleEndian.Uint16(head[off:]) }
	u32 := func(off int) uint32 { return binary.LittleEndian.Uint32(head[off:]) }
	switch {
	case u16(hdrBootFlag) != 0xaa55 || u32(hdrMagic) != headerMagic:
		return nil, errNoKernel
	case u16(hdrVersion) < protocolLeast:
		return nil, fmt.Errorf("the kernel's boot protocol is %d.%02d, which is too old: 2.12 came with Linux 3.8", u16(hdrVersion)>>8, u16(hdrVersion)&0xff)
	case u16(hdrXLoadFlags)&xlfKernel64 == 0:
		return nil, errors.New("the kernel is no 64-bit one")
	case uint32(len(l.Command)) > u32(hdrCommandSize):
		return nil, fmt.Errorf("a command line of %d bytes is too long for this kernel, which takes %d", len(l.Command), u32(hdrCommandSize))
	}
	setup := int64(head[hdrSetupSects])
	if setup == 0 {
		setup = 4
	}
	from := (setup + 1) * 512
	if from >= l.Size {
		return nil, fmt.Errorf("%w: it ends in its header", errNoKernel)
	}
	addr := uint64(highAddr)
	if head[hdrRelocatable] == 0 || addr < binary.LittleEndian.Uint64(head[hdrPrefAddress:]) {
		addr = binary.LittleEndian.Uint64(head[hdrPrefAddress:])
	}
	need := max(uint64(l.Size-from), uint64(u32(hdrInitSize)))
	if addr < highAddr || addr > math.MaxUint32 || addr+need > m.Regions()[0].End() {
		return nil, fmt.Errorf("the kernel wants %d MiB of memory from %#x, and the guest has %d MiB", need>>20, addr, m.Size()>>20)
	}
	if err := readInto(m, io.NewSectionReader(l.Kernel, from, l.Size-from), l.Size-from, addr, "kernel"); err != nil {
		return nil, err
	}
	initrd, err := placeInitrd(m, l, uint64(u32(hdrInitrdMax)), addr+need)
	if err != nil {
		return nil, err
	}
	if err := m.Write(zeroPage(head, initrd, l, memoryMap(m)), zeroPageAddr); err != nil {
		return nil, err
	}
	if err := identityMap(m); err != nil {
		return nil, err
	}
	return &Entry{Long: true, RIP: addr + entry64, RSI: zeroPageAddr, CR3: pageTableAddr}, nil
}

// zeroPage is struct boot_params: the kernel's own header with what a boot
// loader fills in.
func zeroPage(head []byte, initrd uint64, l Linux, areas []area) []byte {
	zp := make([]byte, zeroPageSize)
	end := min(hdrMagic+int(head[hdrJump+1]), hdrEnd)
	copy(zp[hdrSetupSects:end], head[hdrSetupSects:end])
	le := binary.LittleEndian
	zp[hdrLoader] = loaderUndefined
	zp[hdrLoadFlags] |= loadedHigh
	le.PutUint32(zp[hdrRamdisk:], uint32(initrd))
	if initrd != 0 {
		le.PutUint32(zp[hdrRamdiskSize:], uint32(l.InitrdSize))
	}
	le.PutUint32(zp[hdrCommand:], commandAddr)
	le.PutUint64(zp[zpACPI:], ACPIAddr)
	zp[zpE820Count] = byte(min(len(areas), e820Max))
	for i, a := range areas[:min(len(areas), e820Max)] {
		e := zp[zpE820+20*i:]
		le.PutUint64(e, a.addr)
		le.PutUint64(e[8:], a.size)
		le.PutUint32(e[16:], a.kind)
	}
	return zp
}
