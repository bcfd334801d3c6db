package blk

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
)

// trackedBits is the log2 of the blocks that Changes tells apart: 64 KiB, so
// that a mark of a terabyte takes 2 MiB.
const trackedBits = 16

// TrackedBlock is their size.
const TrackedBlock = 1 << trackedBits

// Changes is a Tracker in memory: it tells which blocks were changed since a
// mark was made. Marks have numbers that grow; those that nobody needs any
// more are to be forgotten. What it knows is bytes, for who wants to keep it
// over the end of the process: MarshalBinary while the device is paused.
type Changes struct {
	mu    sync.Mutex
	first uint64     // number of the first mark
	since [][]uint64 // bits of blocks changed between a mark and the next
}

// NewChanges returns a tracker without marks, which notes nothing. The first
// mark will be number next.
func NewChanges(next uint64) *Changes { return &Changes{first: next} }

// Range is a part of a disk, in bytes.
type Range struct{ Offset, Size int64 }

// Change implements Tracker.
func (c *Changes) Change(off, n int64) {
	if off < 0 || n <= 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.since) == 0 {
		return
	}
	bits := &c.since[len(c.since)-1]
	first, last := off>>trackedBits, (off+n-1)>>trackedBits
	if need := int(last/64) + 1; need > len(*bits) {
		*bits = append(*bits, make([]uint64, need-len(*bits))...)
	}
	for b := first; b <= last; b++ {
		(*bits)[b/64] |= 1 << (b % 64)
	}
}

// Mark makes a mark, and returns its number.
func (c *Changes) Mark() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.since = append(c.since, nil)
	return c.first + uint64(len(c.since)) - 1
}

// Since returns what was changed since a mark, in whole blocks: the last may
// reach behind the disk's end. ok is false if the mark isn't known: then
// anything may have changed.
func (c *Changes) Since(mark uint64) (ranges []Range, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if mark < c.first || mark-c.first >= uint64(len(c.since)) {
		return nil, false
	}
	var all []uint64
	for _, bits := range c.since[mark-c.first:] {
		all = join(all, bits)
	}
	for b := int64(0); b < int64(len(all))*64; b++ {
		if all[b/64]&(1<<(b%64)) == 0 {
			continue
		}
		if k := len(ranges) - 1; k >= 0 && ranges[k].Offset+ranges[k].Size == b<<trackedBits {
			ranges[k].Size += TrackedBlock
		} else {
			ranges = append(ranges, Range{b << trackedBits, TrackedBlock})
		}
	}
	return ranges, true
}

// join adds bits to others.
func join(to, bits []uint64) []uint64 {
	if len(to) < len(bits) {
		to = append(slices.Clone(to), make([]uint64, len(bits)-len(to))...)
	}
	for i, v := range bits {
		to[i] |= v
	}
	return to
}

// Forget forgets the marks before one.
func (c *Changes) Forget(before uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := min(max(before, c.first)-c.first, uint64(len(c.since)))
	c.since = slices.Delete(c.since, 0, int(n))
	c.first += n
}

// changesMagic begins what is kept, with the version.
const changesMagic = "CLVCHG\x00\x01"

// MarshalBinary implements encoding.BinaryMarshaler.
func (c *Changes) MarshalBinary() ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	le := binary.LittleEndian
	b := le.AppendUint64([]byte(changesMagic), c.first)
	b = le.AppendUint64(b, uint64(len(c.since)))
	for _, bits := range c.since {
		b = le.AppendUint64(b, uint64(len(bits)))
		for _, v := range bits {
			b = le.AppendUint64(b, v)
		}
	}
	return b, nil
}

// UnmarshalBinary implements encoding.BinaryUnmarshaler.
func (c *Changes) UnmarshalBinary(b []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	le := binary.LittleEndian
	const head = len(changesMagic) + 16
	if len(b) < head || string(b[:len(changesMagic)]) != changesMagic {
		return fmt.Errorf("no record of a disk's changes, or of a version that isn't known")
	}
	first, marks := le.Uint64(b[len(changesMagic):]), le.Uint64(b[head-8:])
	b = b[head:]
	var since [][]uint64
	for range marks {
		if len(b) < 8 || le.Uint64(b) > uint64(len(b)-8)/8 {
			return fmt.Errorf("a record of a disk's changes is cut short")
		}
		bits := make([]uint64, le.Uint64(b))
		b = b[8:]
		for i := range bits {
			bits[i] = le.Uint64(b[8*i:])
		}
		since, b = append(since, bits), b[8*len(bits):]
	}
	if len(b) > 0 || first+marks < first {
		return fmt.Errorf("a record of a disk's changes has %d bytes too many", len(b))
	}
	c.first, c.since = first, since
	return nil
}
