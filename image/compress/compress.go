// Package compress reads streams whose compression is told by their first
// bytes: gzip (RFC 1952), zstd (RFC 8878), xz, or none.
package compress

import (
	"bufio"
	"bytes"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// maxWindow bounds the memory that a stream can ask for: what `zstd --ultra
// --long=27` and `xz -9` write is below it.
const maxWindow = 128 << 20

// Format names a compression.
type Format string

// Formats.
const (
	None Format = ""
	Gzip Format = "gzip"
	Zstd Format = "zstd"
	XZ   Format = "xz"
)

var magics = []struct {
	format Format
	magic  []byte
}{
	{Gzip, []byte{0x1f, 0x8b, 0x08}},
	{Zstd, []byte{0x28, 0xb5, 0x2f, 0xfd}},
	{Zstd, []byte{0x50, 0x2a, 0x4d, 0x18}}, // a skippable frame first, as zstd:chunked tools may write
	{XZ, []byte{0xfd, '7', 'z', 'X', 'Z', 0}},
}

// NewReader returns a reader of the plain bytes and the format it found. The
// reader must be closed; that does not close r.
func NewReader(r io.Reader) (io.ReadCloser, Format, error) {
	br := bufio.NewReaderSize(r, 256<<10)
	head, err := br.Peek(32)
	if err != nil && err != io.EOF {
		return nil, None, err
	}
	for _, m := range magics {
		if !bytes.HasPrefix(head, m.magic) {
			continue
		}
		rc, err := open(m.format, br, head)
		if err != nil {
			return nil, None, fmt.Errorf("%s: %w", m.format, err)
		}
		return rc, m.format, nil
	}
	return io.NopCloser(br), None, nil
}

func open(f Format, r io.Reader, head []byte) (io.ReadCloser, error) {
	switch f {
	case Gzip:
		return gzip.NewReader(r)
	case Zstd:
		// One goroutine: layers are unpacked beside each other already.
		d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	default:
		if err := checkXZ(head); err != nil {
			return nil, err
		}
		x, err := xz.NewReader(r)
		if err != nil {
			return nil, err
		}
		return io.NopCloser(x), nil
	}
}

// checkXZ refuses a stream whose first block wants a dictionary larger than
// maxWindow (The .xz File Format 1.2.0, §3.1 and §5.3.1): it would be
// allocated at once. A filter chain of more than LZMA2 is not looked into;
// the decoder refuses it.
func checkXZ(head []byte) error {
	const streamHeader, idLZMA2 = 12, 0x21
	// Block header: size, flags, [sizes], filter id, size of properties (1),
	// dictionary size.
	b := head[min(len(head), streamHeader):]
	if len(b) < 2 || b[0] == 0 {
		return nil // an empty stream
	}
	flags, b := b[1], b[2:]
	for _, present := range []byte{0x40, 0x80} {
		if flags&present == 0 {
			continue
		}
		for len(b) > 0 && b[0]&0x80 != 0 {
			b = b[1:]
		}
		b = b[min(len(b), 1):]
	}
	if flags&3 != 0 || len(b) < 3 || b[0] != idLZMA2 {
		return nil
	}
	bits := b[2] & 0x3f
	if bits > 40 || (int64(2|bits&1)<<(bits/2+11)) > maxWindow {
		return fmt.Errorf("a dictionary of more than %d MiB is not accepted", maxWindow>>20)
	}
	return nil
}
