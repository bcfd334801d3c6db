package disk

import (
	"io"

	"github.com/cleave-project/cleave/api"
)

const qcow2Magic = "QFI\xfb"

// Incompatible features of a header of version 3 (QEMU docs/interop/qcow2.txt).
const (
	qcow2Corrupt  = 1 << 1
	qcow2DataFile = 1 << 2
	qcow2Extended = 1 << 4
	qcow2Known    = 1<<5 - 1
)

// checkQcow2 returns the size of the disk in a qcow2 file.
func checkQcow2(f io.ReaderAt, size int64) (int64, error) {
	b, err := read(f, size, 0, 72)
	if err != nil {
		return 0, err
	}
	version, backing, clusterBits := be.Uint32(b[4:]), be.Uint64(b[8:]), be.Uint32(b[20:])
	disk, crypt := be.Uint64(b[24:]), be.Uint32(b[32:])
	switch {
	case version != 2 && version != 3:
		return 0, api.Errorf(api.CodeUnsupported, "it is a qcow file of version %d; 2 and 3 are understood", version).
			WithHint("convert it where it was made: qemu-img convert -O qcow2 IMAGE new.qcow2")
	case backing != 0:
		return 0, incomplete("a backing file")
	case crypt != 0:
		return 0, encrypted()
	case clusterBits < 9 || clusterBits > 21:
		return 0, corrupt("its clusters have 2^%d bytes; qcow2 knows 2^9 to 2^21", clusterBits)
	case disk > MaxSize:
		return 0, corrupt("it says that its disk has %d bytes", disk)
	}
	entry := int64(8)
	if version == 3 {
		features, err := checkQcow2Features(f, size)
		if err != nil {
			return 0, err
		}
		if features&qcow2Extended != 0 {
			entry = 16
		}
	}
	// The table that all else is found by must be in the file and large enough.
	entries, table := int64(be.Uint32(b[36:])), int64(be.Uint64(b[40:]))
	covers := int64(1) << (2 * clusterBits) / entry // bytes of the disk, by one entry
	need := (int64(disk) + covers - 1) / covers
	if entries < need || entries*8 > 32<<20 || table < 0 || table > size-entries*8 {
		return 0, corrupt("it is cut off or damaged: its first table has %d entries at %d, where %d are needed in a file of %d bytes", entries, table, need, size)
	}
	return int64(disk), walkQcow2(f, size, table, need, clusterBits, entry)
}

func checkQcow2Features(f io.ReaderAt, size int64) (uint64, error) {
	b, err := read(f, size, 72, 32)
	if err != nil {
		return 0, err
	}
	features := be.Uint64(b)
	switch {
	case features&qcow2DataFile != 0:
		return 0, incomplete("an external data file")
	case features&qcow2Corrupt != 0:
		return 0, api.Errorf(api.CodeCorrupt, "it is marked as damaged").WithHint("repair a copy: qemu-img check -r all IMAGE")
	case features&^uint64(qcow2Known) != 0:
		return 0, api.Errorf(api.CodeUnsupported, "it uses features of qcow2 that aren't known (%#x)", features&^uint64(qcow2Known))
	}
	return features, nil
}

func encrypted() error {
	return api.Errorf(api.CodeUnsupported, "it is encrypted").
		WithHint("decrypt it where its key is, with qemu-img convert")
}
