package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// table is a table of the image that is in memory.
type table struct {
	at    int64
	bytes []byte
	dirty bool
	// written says that a Flush is writing a copy: until it has, what the
	// file has is old.
	written bool
	used    atomic.Int64
}

func (t *table) get(n int64) uint64 { return binary.BigEndian.Uint64(t.bytes[8*n:]) }

func (t *table) set(n int64, v uint64) {
	binary.BigEndian.PutUint64(t.bytes[8*n:], v)
	t.dirty = true
}

// cacheBytes bounds what tables of one kind take, where that is more than four.
const cacheBytes = 2 << 20

// cache has tables by their index.
type cache struct {
	tables map[int64]*table
	most   int
	clock  atomic.Int64
}

func (c *cache) init(tableSize int64) {
	c.tables, c.most = map[int64]*table{}, int(max(4, cacheBytes/tableSize))
}

// find returns a table that is in memory, or nil.
func (c *cache) find(n int64) *table {
	t := c.tables[n]
	if t != nil {
		t.used.Store(c.clock.Add(1))
	}
	return t
}

// add keeps one more, and forgets those that weren't used for longest and are
// in the file as they are here.
func (c *cache) add(n int64, t *table) {
	t.used.Store(c.clock.Add(1))
	c.tables[n] = t
	for c.crowded() {
		oldest, when := int64(-1), int64(0)
		for k, o := range c.tables {
			if u := o.used.Load(); o != t && !o.dirty && !o.written && (oldest < 0 || u < when) {
				oldest, when = k, u
			}
		}
		if oldest < 0 {
			return
		}
		delete(c.tables, oldest)
	}
}

// crowded says that there are too many, for which only a Flush helps.
func (c *cache) crowded() bool { return len(c.tables) > c.most }

// errDamaged is what is found wrong in an image while it is used.
var errDamaged = errors.New("the qcow2 image is damaged")

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errDamaged, fmt.Sprintf(format, args...))
}

// inFile checks that an entry's cluster is one that can be where it says: in
// the file, and not where the header or a table is that is always in memory.
func (i *Image) inFile(at int64) error {
	end := at + i.cluster()
	switch {
	case at&(i.cluster()-1) != 0, at <= 0, at >= i.end:
		return damaged("a cluster at %#x", at)
	case end > i.l1.at && at < i.l1.at+int64(len(i.l1.bytes)), end > i.refTable.at && at < i.refTable.at+int64(len(i.refTable.bytes)):
		return damaged("a cluster at %#x, in a table", at)
	}
	return nil
}

// checkEntry checks an entry of an L2 table.
func (i *Image) checkEntry(e uint64) error {
	at := int64(e & entryOffset)
	switch {
	case e&entryCompressed != 0:
		return refuse("it has compressed clusters; unpack it with qemu-img convert")
	case e&entryZero != 0 && i.version == 2, e&^(entryCopied|entryOffset|entryZero) != 0:
		return damaged("an entry %#x of a table", e)
	case at == 0:
		return nil
	}
	return i.inFile(at)
}

// l2Table returns the table for an index into l1: nil if there is none. It is
// called with mu held for writing, as are all below.
func (i *Image) l2Table(n int64) (*table, error) {
	e := i.l1.get(n)
	if e&entryOffset == 0 {
		return nil, nil
	}
	return i.load(&i.l2, n, int64(e&entryOffset))
}

func (i *Image) load(c *cache, n, at int64) (*table, error) {
	if t := c.find(n); t != nil {
		return t, nil
	}
	if err := i.inFile(at); err != nil {
		return nil, err
	}
	b, err := i.readAt(at, i.cluster())
	if err != nil {
		return nil, err
	}
	t := &table{at: at, bytes: b}
	c.add(n, t)
	return t, nil
}

// makeL2 returns the table for an index into l1, which it makes if need be.
func (i *Image) makeL2(n int64) (*table, error) {
	if e := i.l1.get(n); e&entryOffset != 0 {
		if e&entryCopied == 0 {
			return nil, damaged("a table at %#x that isn't only this disk's", e&entryOffset)
		}
		return i.l2Table(n)
	}
	k, err := i.allocate()
	if err != nil {
		return nil, err
	}
	t := &table{at: k << i.clusterBits, bytes: make([]byte, i.cluster()), dirty: true}
	i.l2.add(n, t)
	i.l1.set(n, uint64(t.at)|entryCopied)
	return t, nil
}

// block returns the refcount block for a cluster, which it makes if need be.
func (i *Image) block(cluster int64) (*table, error) {
	n := cluster >> i.blockBits()
	if n >= int64(len(i.refTable.bytes))/8 {
		return nil, fmt.Errorf("the qcow2 image's table of reference counts is full: %w", unix.ENOSPC)
	}
	if e := i.refTable.get(n); e != 0 {
		return i.load(&i.counts, n, int64(e&entryOffset))
	}
	// A new block counts itself, if it is the first cluster that it would
	// count: those before are counted by other blocks, and are in use.
	at := n << i.blockBits() << i.clusterBits
	i.grow(at)
	if err := i.inFile(at); err != nil {
		return nil, err
	}
	t := &table{at: at, bytes: make([]byte, i.cluster()), dirty: true}
	i.setCount(t, at>>i.clusterBits, 1)
	i.counts.add(n, t)
	i.refTable.set(n, uint64(at))
	return t, nil
}

// grow says that a cluster is of the file from now on.
func (i *Image) grow(at int64) { i.end = max(i.end, at+i.cluster()) }

// allocate returns a cluster that nothing is in, counted.
func (i *Image) allocate() (int64, error) {
	for k := i.hint; ; k++ {
		b, err := i.block(k)
		if err != nil {
			return 0, err
		}
		at := k << i.clusterBits
		if i.count(b, k) != 0 {
			if at >= i.end {
				return 0, damaged("a cluster at %#x is counted, behind the file's end", at)
			}
			continue
		}
		i.grow(at)
		if err := i.inFile(at); err != nil { // of the header, or of a table
			return 0, err
		}
		i.setCount(b, k, 1)
		i.hint = k + 1
		return k, nil
	}
}

// release takes a cluster back that nothing in the file leads to.
func (i *Image) release(k int64) error {
	b, err := i.block(k)
	if err != nil {
		return err
	}
	if n := i.count(b, k); n != 1 {
		return damaged("cluster %d is used once, and counted %d times", k, n)
	}
	i.setCount(b, k, 0)
	i.hint = min(i.hint, k)
	return nil
}

// count is how often a cluster is used, as its block says.
func (i *Image) count(b *table, cluster int64) uint64 {
	n := cluster & (1<<i.blockBits() - 1)
	switch i.refOrder {
	case 3:
		return uint64(b.bytes[n])
	case 4:
		return uint64(binary.BigEndian.Uint16(b.bytes[2*n:]))
	case 5:
		return uint64(binary.BigEndian.Uint32(b.bytes[4*n:]))
	case 6:
		return b.get(n)
	}
	bit := n << i.refOrder // from the least of the first byte on
	return uint64(b.bytes[bit/8] >> (bit % 8) & (1<<(1<<i.refOrder) - 1))
}

func (i *Image) setCount(b *table, cluster int64, v byte) {
	n := cluster & (1<<i.blockBits() - 1)
	b.dirty = true
	if i.refOrder >= 3 {
		size := int64(1) << (i.refOrder - 3)
		clear(b.bytes[n*size : (n+1)*size])
		b.bytes[(n+1)*size-1] = v
		return
	}
	bit := n << i.refOrder
	mask := byte(1<<(1<<i.refOrder)-1) << (bit % 8)
	b.bytes[bit/8] = b.bytes[bit/8]&^mask | v<<(bit%8)
}
