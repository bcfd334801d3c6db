package disk

import (
	"io"

	"github.com/cleave-project/cleave/api"
)

const (
	vdiMagic   = "\x7f\x10\xda\xbe"
	vdiMagicAt = 0x40
)

// checkVDI returns the size of the disk in a VDI file (VirtualBox
// src/VBox/Storage/VDICore.h).
func checkVDI(f io.ReaderAt, size int64) (int64, error) {
	b, err := read(f, size, 0, 512)
	if err != nil {
		return 0, err
	}
	version, kind := le.Uint32(b[0x44:]), le.Uint32(b[0x4c:])
	blockMap, data := int64(le.Uint32(b[0x154:])), int64(le.Uint32(b[0x158:]))
	sector, disk := le.Uint32(b[0x168:]), le.Uint64(b[0x170:])
	block, blocks := uint64(le.Uint32(b[0x178:])), uint64(le.Uint32(b[0x180:]))
	var none [16]byte
	switch {
	case version != 0x00010001:
		return 0, api.Errorf(api.CodeUnsupported, "it is a VDI file of version %d.%d; 1.1 is understood", version>>16, version&0xffff)
	case kind == 3 || kind == 4 || [16]byte(b[0x1a8:]) != none || [16]byte(b[0x1b8:]) != none:
		return 0, incomplete("the disk that it is a snapshot of")
	case kind != 1 && kind != 2:
		return 0, corrupt("it says to be of kind %d, which VDI doesn't have", kind)
	case sector != 512 || block == 0 || block > 1<<30 || disk > MaxSize || blocks < (disk+block-1)/block:
		return 0, corrupt("its header contradicts itself: %d bytes in %d blocks of %d", disk, blocks, block)
	case int64(blocks)*4 > size-blockMap || data > size:
		return 0, corrupt("it is cut off: its map of blocks should end at %d, and it has %d bytes", blockMap+int64(blocks)*4, size)
	}
	return int64(disk), walkVDI(f, size, blockMap, int64(blocks), data, int64(block))
}
