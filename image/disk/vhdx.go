package disk

import (
	"io"

	"github.com/cleave-project/cleave/api"
)

const vhdxMagic = "vhdxfile"

// Places and ids of a VHDX file ([MS-VHDX] §2.2, §2.6), ids as they lie in
// the file.
const (
	vhdxRegions  = 192 << 10
	vhdxMetadata = "\x06\xa2\x7c\x8b\x90\x47\x9a\x4b\xb8\xfe\x57\x5f\x05\x0f\x88\x6e"
	vhdxParams   = "\x37\x67\xa1\xca\x36\xfa\x43\x4d\xb3\xb6\x33\xf0\xaa\x44\xe7\x6b"
	vhdxDiskSize = "\x24\x42\xa5\x2f\x1b\xcd\x76\x48\xb2\x11\x5d\xbe\xd8\x3b\xf4\xb8"

	vhdxHasParent = 1 << 1
)

// checkVHDX returns the size of the disk in a VHDX file.
func checkVHDX(f io.ReaderAt, size int64) (int64, error) {
	table, err := read(f, size, vhdxRegions, 64<<10)
	if err != nil {
		return 0, err
	}
	regions := le.Uint32(table[8:])
	if string(table[:4]) != "regi" || regions > 2047 {
		return 0, corrupt("its table of regions is damaged")
	}
	for i := range int(regions) {
		e := table[16+32*i:]
		if string(e[:16]) == vhdxMetadata {
			return checkVHDXMetadata(f, size, int64(le.Uint64(e[16:])), int64(le.Uint32(e[24:])))
		}
	}
	return 0, corrupt("it has no metadata")
}

func checkVHDXMetadata(f io.ReaderAt, size, offset, length int64) (disk int64, err error) {
	if length < 64<<10 || offset < 0 || offset > size-length {
		return 0, corrupt("it is cut off: its metadata should be at %d, and it ends at %d", offset, size)
	}
	table, err := read(f, size, offset, 64<<10)
	if err != nil {
		return 0, err
	}
	entries := le.Uint16(table[10:])
	if string(table[:8]) != "metadata" || entries > 2047 {
		return 0, corrupt("its metadata are damaged")
	}
	for i := range int(entries) {
		e := table[32+32*i:]
		id, at := string(e[:16]), int64(le.Uint32(e[16:]))
		if id != vhdxParams && id != vhdxDiskSize {
			continue
		}
		if at > length-8 {
			return 0, corrupt("its metadata are damaged")
		}
		v, err := read(f, size, offset+at, 8)
		if err != nil {
			return 0, err
		}
		if id == vhdxDiskSize {
			if n := le.Uint64(v); n <= MaxSize {
				disk = int64(n)
			}
			continue
		}
		if le.Uint32(v[4:])&vhdxHasParent != 0 {
			return 0, incomplete("the disk that it is a snapshot of")
		}
		if block := le.Uint32(v); block < 1<<20 || block > 256<<20 || block&(block-1) != 0 {
			return 0, corrupt("its blocks have %d bytes; VHDX knows 1 to 256 MiB", block)
		}
	}
	if disk == 0 {
		return 0, api.Errorf(api.CodeCorrupt, "it doesn't say how large its disk is")
	}
	return disk, nil
}
