package kernel

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
)

// lz4Magic begins a frame of the legacy format, the one that Linux is
// compressed with (LZ4 Frame Format Description, "Legacy frame").
const lz4Magic = "\x02\x21\x4c\x18"

// lz4Block is how much a block of that format holds, and its bound when it is
// compressed.
const (
	lz4Block    = 8 << 20
	lz4MaxBlock = lz4Block + lz4Block/255 + 16
)

var errLZ4 = errors.New("its LZ4 is damaged")

// lz4Reader reads a legacy frame.
type lz4Reader struct {
	r    *bufio.Reader
	in   []byte
	out  []byte // of the present block
	left []byte // of out, what wasn't read yet
	err  error
}

func newLZ4Reader(r io.Reader) *lz4Reader {
	b := bufio.NewReaderSize(r, 64<<10)
	var magic [len(lz4Magic)]byte
	z := &lz4Reader{r: b}
	if _, err := io.ReadFull(b, magic[:]); err != nil || string(magic[:]) != lz4Magic {
		z.err = errLZ4
	}
	return z
}

func (z *lz4Reader) Read(p []byte) (int, error) {
	for len(z.left) == 0 {
		if z.err != nil {
			return 0, z.err
		}
		z.err = z.next()
	}
	n := copy(p, z.left)
	z.left = z.left[n:]
	return n, nil
}

// next unpacks a block. Linux appends the size of what is packed (Linux
// scripts/Makefile.lib, size_append), which stands where a block's would: it
// is the end, since no block follows.
func (z *lz4Reader) next() error {
	var head [4]byte
	if _, err := io.ReadFull(z.r, head[:]); err != nil {
		return err
	}
	if _, err := z.r.Peek(1); err == io.EOF {
		return io.EOF
	}
	size := binary.LittleEndian.Uint32(head[:])
	if size > lz4MaxBlock {
		return errLZ4
	}
	if z.in == nil {
		z.in, z.out = make([]byte, lz4MaxBlock), make([]byte, 0, lz4Block)
	}
	if _, err := io.ReadFull(z.r, z.in[:size]); err != nil {
		return errLZ4
	}
	var err error
	z.out, err = unpackLZ4(z.out[:0], z.in[:size])
	z.left = z.out
	return err
}

// unpackLZ4 appends what a block holds to dst, as far as that has room (LZ4
// Block Format Description).
func unpackLZ4(dst, src []byte) ([]byte, error) {
	length := func(n int) (int, bool) { // with its further bytes
		if n < 15 {
			return n, true
		}
		for len(src) > 0 && n <= lz4Block {
			b := src[0]
			src = src[1:]
			n += int(b)
			if b < 255 {
				return n, true
			}
		}
		return 0, false
	}
	for len(src) > 0 {
		token := src[0]
		src = src[1:]
		n, ok := length(int(token >> 4))
		if !ok || n > len(src) || n > cap(dst)-len(dst) {
			return dst, errLZ4
		}
		dst = append(dst, src[:n]...)
		if src = src[n:]; len(src) == 0 {
			return dst, nil // the last sequence has literals only
		}
		if len(src) < 2 {
			return dst, errLZ4
		}
		offset := int(binary.LittleEndian.Uint16(src))
		src = src[2:]
		n, ok = length(int(token & 15))
		n += 4
		if !ok || offset == 0 || offset > len(dst) || n > cap(dst)-len(dst) {
			return dst, errLZ4
		}
		for n > 0 { // what is copied may be part of what it is copied from
			from := dst[len(dst)-offset:]
			part := from[:min(n, len(from))]
			dst = append(dst, part...)
			n -= len(part)
		}
	}
	return dst, nil
}
