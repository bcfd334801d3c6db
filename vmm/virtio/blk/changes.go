package blk

import (
	"crypto/rand"
	"encoding/binary"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
)

// trackedBits is the log2 of the blocks that Changes tells apart: 64 KiB, so
// that a mark of a terabyte takes 2 MiB.
const trackedBits = 16

// TrackedBlock is their size.
const TrackedBlock = 1 << trackedBits

// Changes is a Tracker in memory: it tells which blocks were changed since a
// mark was made. A mark is a random number, so that none of a tracker that is
// gone is ever taken for one of another. Those that nobody needs any more are
// to be forgotten: each takes memory.
//
// All of it may be called at any time from any goroutine. A writer waits for
// no other, and not for Since; without marks it only looks whether there are
// any.
type Changes struct {
	marked atomic.Bool // whether there are spans

	// mu is held for reading where bits are set in the last span, and for
	// writing where spans come, go or are replaced by larger ones. Bits
	// themselves are only ever set.
	mu    sync.RWMutex
	spans []span // the oldest first
}

// span is what was changed between a mark and the next.
type span struct {
	mark uint64
	bits []atomic.Uint64
}

// Span is what was changed between a mark and the next, a bit for each block,
// from the lowest of the first word on.
type Span struct {
	Mark uint64
	Bits []uint64
}

// Range is a part of a disk, in bytes.
type Range struct{ Offset, Size int64 }

// NewChanges returns a tracker that has marks already, the oldest first: none
// for one that notes nothing yet.
func NewChanges(spans ...Span) *Changes {
	c := &Changes{}
	for _, s := range spans {
		n := span{s.Mark, make([]atomic.Uint64, len(s.Bits))}
		for i, v := range s.Bits {
			n.bits[i].Store(v)
		}
		c.spans = append(c.spans, n)
	}
	c.marked.Store(len(spans) > 0)
	return c
}

// Change implements Tracker.
func (c *Changes) Change(off, n int64) {
	if off < 0 || n <= 0 || !c.marked.Load() {
		return
	}
	first, last := uint64(off)>>trackedBits, (uint64(off)+uint64(n)-1)>>trackedBits
	c.mu.RLock()
	defer c.mu.RUnlock()
	for len(c.spans) > 0 && uint64(len(c.spans[len(c.spans)-1].bits)) <= last/64 {
		c.mu.RUnlock()
		c.grow(int(last/64) + 1)
		c.mu.RLock()
	}
	if len(c.spans) == 0 {
		return
	}
	words := c.spans[len(c.spans)-1].bits
	for w := first / 64; w <= last/64; w++ {
		mask := ^uint64(0)
		if w == first/64 {
			mask <<= first % 64
		}
		if w == last/64 {
			mask &= ^uint64(0) >> (63 - last%64)
		}
		if words[w].Load()&mask != mask { // else the line stays in other processors' caches
			words[w].Or(mask)
		}
	}
}

// grow makes room for so many words in the last span, and for as many as it
// has, for a disk that is written from its beginning to its end.
func (c *Changes) grow(need int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.spans) == 0 {
		return
	}
	s := &c.spans[len(c.spans)-1]
	if len(s.bits) < need {
		s.bits = join(make([]atomic.Uint64, max(need, 2*len(s.bits))), s.bits)
	}
}

// join adds bits to others, which are as many at least.
func join(to, from []atomic.Uint64) []atomic.Uint64 {
	for i := range from {
		if v := from[i].Load(); v != 0 {
			to[i].Or(v)
		}
	}
	return to
}

// Mark makes a mark. What ends from here on is told of it.
func (c *Changes) Mark() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // which never fails
	s := span{mark: binary.LittleEndian.Uint64(b[:])}
	c.mu.Lock()
	defer c.mu.Unlock()
	if k := len(c.spans); k > 0 {
		s.bits = make([]atomic.Uint64, len(c.spans[k-1].bits))
	}
	c.spans = append(c.spans, s)
	c.marked.Store(true)
	return s.mark
}

// Marks are how many there are.
func (c *Changes) Marks() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return len(c.spans)
}

// Since returns what was changed since a mark, in whole blocks: the last may
// reach behind the disk's end. ok is false if the mark isn't known: then
// anything may have changed.
func (c *Changes) Since(mark uint64) (ranges []Range, ok bool) {
	c.mu.RLock()
	i := c.find(mark)
	if i < 0 {
		c.mu.RUnlock()
		return nil, false
	}
	spans := slices.Clone(c.spans[i:])
	c.mu.RUnlock()
	var words int
	for _, s := range spans {
		words = max(words, len(s.bits))
	}
	end := int64(-1) // of the last range, in blocks
	for w := range words {
		var v uint64
		for _, s := range spans {
			if w < len(s.bits) {
				v |= s.bits[w].Load()
			}
		}
		for v != 0 {
			from := bits.TrailingZeros64(v)
			n := bits.TrailingZeros64(^(v >> from))
			v &^= (1<<n - 1) << from
			at := int64(w)*64 + int64(from)
			if at == end {
				ranges[len(ranges)-1].Size += int64(n) << trackedBits
			} else {
				ranges = append(ranges, Range{at << trackedBits, int64(n) << trackedBits})
			}
			end = at + int64(n)
		}
	}
	return ranges, true
}

// find is the number of a mark's span, -1 for none. c.mu is held.
func (c *Changes) find(mark uint64) int {
	return slices.IndexFunc(c.spans, func(s span) bool { return s.mark == mark })
}

// Forget forgets a mark. What was changed since is still told of older ones.
func (c *Changes) Forget(mark uint64) (ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := c.find(mark)
	if i < 0 {
		return false
	}
	if i > 0 {
		to := c.spans[i-1].bits
		if more := len(c.spans[i].bits); len(to) < more {
			to = join(make([]atomic.Uint64, more), to)
		}
		c.spans[i-1].bits = join(to, c.spans[i].bits)
	}
	c.spans = slices.Delete(c.spans, i, i+1)
	c.marked.Store(len(c.spans) > 0)
	return true
}

// Spans are all marks and what was changed since, for who keeps them: of a
// device that is paused.
func (c *Changes) Spans() (out []Span) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, s := range c.spans {
		n := Span{Mark: s.mark, Bits: make([]uint64, len(s.bits))}
		for i := range s.bits {
			n.Bits[i] = s.bits[i].Load()
		}
		out = append(out, n)
	}
	return out
}
