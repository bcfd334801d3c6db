package record

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cleave-project/cleave/vmm/virtio/blk"
)

// A record is magic alone while the disk is in use; else there follow, all
// numbers in 8 bytes and little endian:
//
//	the SHA-256 of the rest (32 bytes)
//	inode of the disk's file, size of the disk, time of its last change (seconds, nanoseconds)
//	number of marks, and of each, the oldest first:
//	  the mark, number of words, words: a bit for each block of 64 KiB
const (
	magicName = "CLVCHG\x00"
	magic     = magicName + "\x01" // the version
	sumEnd    = len(magic) + sha256.Size
	headSize  = 5 * 8
	spanHead  = 2 * 8
)

// wordSize is how much of a disk a word of bits is about.
const wordSize = 64 * blk.TrackedBlock

// Why a record tells nothing. A reader that can't tell them apart is safe with
// any.
var (
	errForeign = errors.New("the file has something else in it, which isn't written over")
	errNone    = errors.New("no marks were kept when its last guest ended")
	errVersion = errors.New("the record is of an edition that this one doesn't know")
	errInUse   = errors.New("its last guest or the host didn't end in order, or the guest went on elsewhere, or the disk failed")
	errDamaged = errors.New("the record is damaged")
)

// mostWords is how many words a mark of a disk has at most, and mostBytes how
// long a record is.
func mostWords(size int64) uint64 { return (uint64(size) + wordSize - 1) / wordSize }

func mostBytes(size int64) int64 {
	return int64(sumEnd+headSize) + MaxMarks*int64(spanHead+8*mostWords(size))
}

func encode(of state, spans []blk.Span) []byte {
	le := binary.LittleEndian
	b := make([]byte, sumEnd, sumEnd+headSize)
	copy(b, magic)
	for _, v := range []uint64{of.Inode, uint64(of.Size), uint64(of.Seconds), uint64(of.Nanoseconds), uint64(len(spans))} {
		b = le.AppendUint64(b, v)
	}
	for _, s := range spans {
		words := s.Bits
		for len(words) > 0 && words[len(words)-1] == 0 {
			words = words[:len(words)-1]
		}
		b = slices.Grow(b, spanHead+8*len(words))
		b = le.AppendUint64(le.AppendUint64(b, s.Mark), uint64(len(words)))
		for _, v := range words {
			b = le.AppendUint64(b, v)
		}
	}
	sum := sha256.Sum256(b[sumEnd:])
	copy(b[len(magic):], sum[:])
	return b
}

func decode(b []byte) (of state, spans []blk.Span, err error) {
	switch {
	case len(b) == 0:
		return of, nil, errNone
	case string(b) == magic:
		return of, nil, errInUse
	case strings.HasPrefix(magicName, string(b)):
		return of, nil, errDamaged // it ends in its name
	case !strings.HasPrefix(string(b), magicName):
		return of, nil, errForeign
	case !strings.HasPrefix(string(b), magic):
		return of, nil, errVersion
	case len(b) < sumEnd+headSize:
		return of, nil, errDamaged
	}
	if sum := sha256.Sum256(b[sumEnd:]); string(sum[:]) != string(b[len(magic):sumEnd]) {
		return of, nil, errDamaged
	}
	return decodeBody(b[sumEnd:])
}

// decodeBody is decode without the sum, of headSize bytes at least.
func decodeBody(b []byte) (of state, spans []blk.Span, err error) {
	number := func() (v uint64) {
		v, b = binary.LittleEndian.Uint64(b), b[8:]
		return v
	}
	of = state{Inode: number(), Size: int64(number()), Seconds: int64(number()), Nanoseconds: int64(number())}
	marks := number()
	if of.Size < 0 || marks > MaxMarks {
		return of, nil, fmt.Errorf("%w: %d marks of a disk of %d bytes", errDamaged, marks, of.Size)
	}
	for range marks {
		if len(b) < spanHead {
			return of, nil, fmt.Errorf("%w: it is cut short", errDamaged)
		}
		s := blk.Span{Mark: number()}
		words := number()
		if words > mostWords(of.Size) || words > uint64(len(b))/8 {
			return of, nil, fmt.Errorf("%w: a mark of %d words", errDamaged, words)
		}
		s.Bits = make([]uint64, words)
		for i := range s.Bits {
			s.Bits[i] = number()
		}
		spans = append(spans, s)
	}
	if len(b) > 0 {
		return of, nil, fmt.Errorf("%w: it has %d bytes too many", errDamaged, len(b))
	}
	return of, spans, nil
}
