// Package pages brings the memory of a snapshot to a guest that runs already,
// from where it is: what the guest waits for first, and the rest behind it. One
// side has the memory (Serve), the other the guest (Fetch); between them is a
// stream, such as a socket, of one connection.
//
// # Protocol
//
// Numbers are little-endian. Who has the memory begins with a greeting of 16
// bytes: "CLVPAGE1" and the memory's size in bytes. Then each side sends as it
// likes:
//
//   - to the memory, wants: an offset and a size, of 8 bytes each;
//   - to the guest, parts: an offset and a size, of 8 bytes each, and with a
//     size that has its highest bit set nothing else, since all of it is
//     zeroes; else as many bytes, MaxPart at most.
//
// Offsets and sizes are multiples of 4096. A part may come without having been
// wanted, and what came once isn't changed by what comes again. Who has the
// memory ends the stream when all of it was sent.
//
// Neither side believes the other: what is outside of the memory, or too large,
// ends the stream with an error. A guest whose stream ends early can't go on.
package pages

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	magic    = "CLVPAGE1"
	pageSize = 4096
	headSize = 16
	zeroes   = 1 << 63

	// MaxPart is how many bytes a part has at most, unless they are zeroes.
	MaxPart = 256 << 10
)

// errBroken is the fault of who sends what can't be.
var errBroken = errors.New("broken stream of pages")

// head begins a part, or is a want.
type head struct {
	offset, size int64
	zero         bool
}

func (h head) append(b []byte) []byte {
	size := uint64(h.size)
	if h.zero {
		size |= zeroes
	}
	b = binary.LittleEndian.AppendUint64(b, uint64(h.offset))
	return binary.LittleEndian.AppendUint64(b, size)
}

// readHead reads one that is within a memory of so many bytes. At the end of
// the stream it is io.EOF.
func readHead(r io.Reader, memory int64) (h head, err error) {
	var b [headSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return h, err
	}
	offset, size := binary.LittleEndian.Uint64(b[:]), binary.LittleEndian.Uint64(b[8:])
	h = head{int64(offset), int64(size &^ zeroes), size&zeroes != 0}
	if h.offset < 0 || h.offset%pageSize != 0 || h.size == 0 || h.size%pageSize != 0 || h.size > memory || h.offset > memory-h.size {
		return h, fmt.Errorf("%w: %d bytes at %d, of %d", errBroken, h.size, offset, memory)
	}
	return h, nil
}

// greeting is what who has so much memory says first.
func greeting(memory int64) []byte {
	return binary.LittleEndian.AppendUint64([]byte(magic), uint64(memory))
}

// readGreeting expects that of a memory of so many bytes.
func readGreeting(r io.Reader, memory int64) error {
	var b [len(magic) + 8]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return fmt.Errorf("the greeting: %w", err)
	}
	if string(b[:len(magic)]) != magic {
		return fmt.Errorf("%w: it begins with %q", errBroken, b[:len(magic)])
	}
	if has := binary.LittleEndian.Uint64(b[len(magic):]); has != uint64(memory) {
		return fmt.Errorf("the guest has %d bytes of memory, and there are %d", memory, has)
	}
	return nil
}
