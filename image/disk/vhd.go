package disk

import (
	"io"
)

const (
	vhdMagic      = "conectix"
	vhdFooterSize = 512
	vhdFixed      = 2
	vhdDynamic    = 3
	vhdSnapshot   = 4
)

// vhdFooter is the part of a VHD's footer that matters (Microsoft, Virtual
// Hard Disk Image Format Specification 1.0). A dynamic disk begins with a
// copy of it.
type vhdFooter struct {
	size int64
	kind uint32
}

func readVHDFooter(f io.ReaderAt, offset int64) (vhdFooter, error) {
	b, err := read(f, offset+vhdFooterSize, offset, vhdFooterSize)
	if err != nil {
		return vhdFooter{}, err
	}
	sum := uint32(0)
	for i, c := range b {
		if i < 64 || i >= 68 {
			sum += uint32(c)
		}
	}
	if string(b[:8]) != vhdMagic || ^sum != be.Uint32(b[64:]) {
		return vhdFooter{}, corrupt("its footer is damaged")
	}
	return vhdFooter{size: int64(be.Uint64(b[48:])), kind: be.Uint32(b[60:])}, nil
}

// checkVHD finds the disk in a VHD file: as it is when the size is fixed,
// else in blocks.
func checkVHD(f io.ReaderAt, size int64) (Header, error) {
	last, err := readVHDFooter(f, size-vhdFooterSize)
	if err != nil {
		return Header{}, corrupt("it is cut off: it should end with a footer")
	}
	if last.kind == vhdFixed {
		if last.size != size-vhdFooterSize {
			return Header{}, corrupt("it is cut off: it says that its disk has %d bytes, and holds %d", last.size, size-vhdFooterSize)
		}
		return Header{Format: "raw", Size: last.size, Length: last.size}, nil
	}
	first, err := readVHDFooter(f, 0)
	if err != nil {
		return Header{}, err
	}
	switch {
	case first.kind == vhdSnapshot:
		return Header{}, incomplete("the disk that it is a snapshot of")
	case first.kind != vhdDynamic:
		return Header{}, corrupt("it is cut off, or of a kind (%d) that VHD doesn't have", first.kind)
	case first.size <= 0 || first.size > MaxSize:
		return Header{}, corrupt("it says that its disk has %d bytes", first.size)
	}
	b, err := read(f, size, vhdFooterSize, 1024)
	if err != nil {
		return Header{}, err
	}
	table, entries, block := int64(be.Uint64(b[16:])), int64(be.Uint32(b[28:])), int64(be.Uint32(b[32:]))
	switch {
	case string(b[:8]) != "cxsparse":
		return Header{}, corrupt("its second header is damaged")
	case block < 512 || block&(block-1) != 0 || entries < (first.size+block-1)/block || table < 0 || table > size-entries*4:
		return Header{}, corrupt("it is cut off or damaged: %d blocks of %d bytes, found by a table at %d", entries, block, table)
	}
	return Header{Format: "vpc", Size: first.size, Length: size}, nil
}
