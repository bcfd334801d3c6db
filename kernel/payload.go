package kernel

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/cleave-project/cleave/image/compress"
)

// payload finds the compressed vmlinux in a bzImage (Documentation/arch/x86/
// boot.rst, payload_offset and payload_length). Machines start that itself, by
// PVH: a translated one spares itself the unpacking, a fifth of its boot, and
// starts again after a reset, which QEMU 7.2 leaves a bzImage unable to.
func payload(f io.ReaderAt, b []byte, size, sects int64) *io.SectionReader {
	const payloadOffset, payloadLength = 0x248, 0x24c
	le := binary.LittleEndian
	off := (sects+1)*512 + int64(le.Uint32(b[payloadOffset:]))
	length := int64(le.Uint32(b[payloadLength:]))
	if length < 16 || off+length > size {
		return nil
	}
	return io.NewSectionReader(f, off, length)
}

// unpacker reads what is in a payload. The size of its content, which Linux
// appends to some formats, is not part of it.
func unpacker(packed *io.SectionReader) (io.ReadCloser, error) {
	var magic [4]byte
	if _, err := packed.ReadAt(magic[:], 0); err != nil {
		return nil, err
	}
	var r io.Reader = io.NewSectionReader(packed, 0, packed.Size()-4)
	switch {
	case string(magic[:]) == lz4Magic:
		return io.NopCloser(newLZ4Reader(packed)), nil
	case bytes.HasPrefix(magic[:], []byte{0x1f, 0x8b}):
		r = packed // it ends with the size by itself
	}
	z, format, err := compress.NewReader(r)
	if err == nil && format == compress.None {
		z.Close()
		err = fmt.Errorf("a payload that begins with %q", magic[:])
	}
	return z, err
}
