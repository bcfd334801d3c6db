package qcow2

import (
	"encoding/binary"
	"fmt"
)

// Limits of what is read (as QEMU has them).
const (
	magic          = 0x514649fb // QFI\xfb
	minClusterBits = 9
	maxClusterBits = 21
	maxL1          = 32 << 20 // bytes
	maxRefTable    = 8 << 20  // bytes
	maxOrder       = 6
	headerV3       = 104
	autoclearAt    = 88
	headerSize     = 512 // what is read of it: more than is looked at
)

// Incompatible features of version 3.
const (
	featureDirty = 1 << iota
	featureCorrupt
	featureDataFile
	featureCompression
	featureExtendedL2
	featuresKnown = 1<<iota - 1
)

// header is the beginning of a file, checked.
type header struct {
	version     uint32
	clusterBits uint
	size        int64
	l1Size      int // entries
	l1At        int64
	refTableAt  int64
	refClusters int64 // of the refcount table
	refOrder    uint
	snapshots   uint32
	autoclear   uint64
}

func (h *header) cluster() int64 { return 1 << h.clusterBits }

// l2Bits is the log2 of the entries of an L2 table.
func (h *header) l2Bits() uint { return h.clusterBits - 3 }

// blockBits is the log2 of the counts in a refcount block.
func (h *header) blockBits() uint { return h.clusterBits + 3 - h.refOrder }

func refuse(format string, args ...any) error {
	return fmt.Errorf("qcow2: %s", fmt.Sprintf(format, args...))
}

// parseHeader checks the first bytes of a file of some size.
func parseHeader(b []byte, fileSize int64, readOnly bool) (*header, error) {
	be := binary.BigEndian
	if len(b) < headerV3 || be.Uint32(b) != magic {
		return nil, refuse("no image of that format")
	}
	bits := be.Uint32(b[20:])
	h := &header{
		version: be.Uint32(b[4:]), clusterBits: uint(bits), size: int64(be.Uint64(b[24:])),
		l1Size: int(be.Uint32(b[36:])), l1At: int64(be.Uint64(b[40:])),
		refTableAt: int64(be.Uint64(b[48:])), refClusters: int64(be.Uint32(b[56:])),
		refOrder: 4, snapshots: be.Uint32(b[60:]),
	}
	switch {
	case h.version != 2 && h.version != 3:
		return nil, refuse("version %d; 2 and 3 are known", h.version)
	case bits < minClusterBits || bits > maxClusterBits:
		return nil, refuse("clusters of 2^%d bytes", bits)
	case be.Uint64(b[8:]) != 0 || be.Uint32(b[16:]) != 0:
		return nil, refuse("a backing file is needed; flatten the image with qemu-img convert")
	case be.Uint32(b[32:]) != 0:
		return nil, refuse("it is encrypted")
	case h.snapshots != 0 && !readOnly:
		return nil, refuse("it has snapshots inside; delete them with qemu-img snapshot -d, or open it read-only")
	}
	if h.version == 3 {
		if err := h.parseV3(b, readOnly); err != nil {
			return nil, err
		}
	}
	return h, h.checkTables(fileSize)
}

func (h *header) parseV3(b []byte, readOnly bool) error {
	be := binary.BigEndian
	f, length := be.Uint64(b[72:]), be.Uint32(b[100:])
	h.autoclear, h.refOrder = be.Uint64(b[autoclearAt:]), uint(be.Uint32(b[96:]))
	switch {
	case f&^featuresKnown != 0:
		return refuse("unknown features %#x", f&^featuresKnown)
	case f&featureCorrupt != 0:
		return refuse("it is marked as damaged; repair it with qemu-img check -r all")
	case f&featureDirty != 0 && !readOnly:
		return refuse("it wasn't closed cleanly; repair it with qemu-img check -r all")
	case f&featureDataFile != 0:
		return refuse("its data are in another file; flatten the image with qemu-img convert")
	case f&featureCompression != 0:
		return refuse("it is compressed with zstd; unpack it with qemu-img convert")
	case f&featureExtendedL2 != 0:
		return refuse("it has subclusters; convert it with qemu-img convert -o extended_l2=off")
	case h.refOrder > maxOrder:
		return refuse("reference counts of 2^%d bits", h.refOrder)
	case length < headerV3 || length%8 != 0 || int64(length) > h.cluster():
		return refuse("a header of %d bytes", length)
	}
	return nil
}

// checkTables checks where the two tables are that are always in memory, or
// of which every entry is looked at.
func (h *header) checkTables(fileSize int64) error {
	perL1 := h.cluster() << h.l2Bits() // what one table describes
	switch {
	case h.size < 0 || h.size%512 != 0:
		return refuse("a size of %d bytes", uint64(h.size))
	case int64(h.l1Size) > maxL1/8 || h.size > 0 && (h.size-1)/perL1 >= int64(h.l1Size):
		return refuse("a table of %d entries for a disk of %d bytes", h.l1Size, h.size)
	case h.refClusters == 0 || h.refClusters > maxRefTable>>h.clusterBits:
		return refuse("a table of reference counts of %d clusters", h.refClusters)
	}
	for _, t := range [][2]int64{{h.l1At, int64(h.l1Size) * 8}, {h.refTableAt, h.refClusters << h.clusterBits}} {
		if at, n := t[0], t[1]; at&(h.cluster()-1) != 0 || n > 0 && at < h.cluster() || at > fileSize || n > fileSize-at {
			return refuse("a table of %d bytes at %#x of a file of %d", n, uint64(at), fileSize)
		}
	}
	return nil
}

// covers tells whether the refcount table is large enough for all that the
// file can come to hold: it is not made larger.
func (h *header) covers() bool {
	div := func(n int64, bits uint) int64 { return (n + 1<<bits - 1) >> bits }
	data := div(h.size, h.clusterBits)
	clusters := 1 + data + div(data, h.l2Bits()) + div(int64(h.l1Size)*8, h.clusterBits) + h.refClusters
	clusters += div(clusters, h.blockBits()) + 1
	return div(clusters, h.blockBits()) <= h.refClusters<<(h.clusterBits-3)
}
