package disk

import (
	"io"
	"regexp"
	"strings"

	"github.com/cleave-project/cleave/api"
)

const (
	vmdkMagic     = "KDMV"
	vmdkESXMagic  = "COWD"
	vmdkTextMagic = "# Disk DescriptorFile"
)

// vmdkExtent is a line of a descriptor that says where sectors are.
var vmdkExtent = regexp.MustCompile(`(?m)^\s*(RW|RDONLY|NOACCESS)\s+\d+\s+(\S+)`)

// vmdkParent is the line that gives the content id of the disk below; all
// ones for none.
var vmdkParent = regexp.MustCompile(`(?mi)^\s*parentCID\s*=\s*([0-9a-f]+)`)

// maxDescriptor bounds the text in a vmdk file; QEMU reads 10 KiB of it.
const maxDescriptor = 64 << 10

// checkVMDK returns the size of the disk in a vmdk file: one that holds all
// in itself, sparse or stream-optimized (VMware, Virtual Disk Format 5.0).
func checkVMDK(f io.ReaderAt, size int64) (int64, error) {
	b, err := read(f, size, 0, int(min(size, 512)))
	if err != nil {
		return 0, err
	}
	switch {
	case strings.HasPrefix(string(b), vmdkTextMagic):
		return 0, incomplete("the extents beside it")
	case strings.HasPrefix(string(b), vmdkESXMagic):
		return 0, api.Errorf(api.CodeUnsupported, "it is a sparse disk of VMware ESX").
			WithHint("export the machine as OVA, or convert the disk with vmkfstools -i DISK -d thin NEW")
	case len(b) < 512:
		return 0, corrupt("it is cut off")
	}
	version, capacity, grain := le.Uint32(b[4:]), le.Uint64(b[12:]), le.Uint64(b[20:])
	switch {
	case version < 1 || version > 3:
		return 0, api.Errorf(api.CodeUnsupported, "it is a vmdk file of version %d; 1 to 3 are understood", version)
	case capacity == 0:
		return 0, incomplete("the extents beside it")
	case capacity > MaxSize/512:
		return 0, corrupt("it says that its disk has %d sectors", capacity)
	case grain < 1 || grain > 1<<12 || grain&(grain-1) != 0:
		return 0, corrupt("it says that its grains have %d sectors", grain)
	}
	at, n := le.Uint64(b[28:]), le.Uint64(b[36:])
	if at == 0 || n == 0 {
		return 0, corrupt("it has no descriptor")
	}
	if at > uint64(size)/512 || n > maxDescriptor/512 {
		return 0, corrupt("its descriptor should have %d sectors from sector %d", n, at)
	}
	text, err := read(f, size, int64(at)*512, int(n)*512)
	if err != nil {
		return 0, err
	}
	if err := checkDescriptor(cString(text)); err != nil {
		return 0, err
	}
	return int64(capacity) * 512, checkGrains(f, size, b, int64(capacity), int64(grain))
}

// checkGrains sees that the file goes on to its end.
func checkGrains(f io.ReaderAt, size int64, header []byte, capacity, grain int64) error {
	perTable, directory := int64(le.Uint32(header[44:])), le.Uint64(header[56:])
	if perTable < 1 || perTable > 1<<12 {
		return corrupt("its tables have %d entries", perTable)
	}
	if directory != atEnd {
		if directory > uint64(size)/512 {
			return corrupt("it is cut off: its directory should be at sector %d", directory)
		}
		return walkVMDK(f, size, int64(directory), ceil(capacity, grain*perTable), perTable)
	}
	// A stream ends with a copy of the header, and an empty sector.
	b, err := read(f, size, size-1024, 1024)
	if err != nil {
		return err
	}
	directory = le.Uint64(b[56:])
	if string(b[:4]) != vmdkMagic || string(b[512:]) != string(make([]byte, 512)) || directory > uint64(size)/512 || le.Uint64(b[12:]) != uint64(capacity) {
		return corrupt("it is cut off: it doesn't end as a stream does")
	}
	return walkVMDK(f, size, int64(directory), ceil(capacity, grain*perTable), perTable)
}

func checkDescriptor(text string) error {
	if strings.Contains(text, "parentFileNameHint") {
		return incomplete("the disk that it is a snapshot of")
	}
	if m := vmdkParent.FindStringSubmatch(text); m != nil && strings.Trim(strings.ToLower(m[1]), "f") != "" {
		return incomplete("the disk that it is a snapshot of")
	}
	extents := vmdkExtent.FindAllStringSubmatch(text, -1)
	if len(extents) > 1 || len(extents) == 1 && extents[0][2] != "SPARSE" {
		return incomplete("the extents beside it")
	}
	return nil
}
