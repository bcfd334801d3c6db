// Package qcow2 reads and writes disk images in QEMU's format, versions 2 and
// 3 (QEMU, docs/interop/qcow2): what they don't hold takes no space.
//
// Refused, with the reason: backing files and files with data outside,
// encryption, compressed clusters, subclusters, images that are damaged or
// weren't closed, any feature that is unknown; and for writing images with
// snapshots inside, and those whose table of reference counts is too small for
// all their sectors (only clusters far below 64 KiB have that). Images may be
// hostile: whatever a table says is checked before it is used, and can't lead
// out of the file. All tables are looked
// at when an image is opened, which takes a read of 64 KiB for 512 MiB of disk
// that are in use.
//
// An Image is a disk for vmm/virtio/blk; its methods may be called from any
// goroutine. Data are written at once, tables with the next Flush, in an order
// that leaves the image sound wherever power fails: counts before what they
// count, tables before what leads to them, and what was freed is used again
// only when nothing leads to it any more. At worst clusters leak that nothing
// was kept in.
package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
)

// File is what an image is in; *blk.File is one.
type File interface {
	Size() (int64, error)
	Blocks() (logical, physical int)
	Readv(pieces [][]byte, off int64) error
	Writev(pieces [][]byte, off int64) error
	Flush() error
	Discard(off, n int64) error
	WriteZeroes(off, n int64, unmap bool) error
}

// Bits of table entries.
const (
	entryCopied     = 1 << 63 // nothing else leads there
	entryCompressed = 1 << 62
	entryZero       = 1
	entryOffset     = (1<<56 - 1) &^ 511
)

// Image is an open image.
type Image struct {
	file     File
	readOnly bool
	*header

	// mu is held for reading while data are read or written where they are,
	// and for writing while clusters get or lose their place.
	mu       sync.RWMutex
	end      int64 // of the file, or of what was allocated behind it
	l1       table // entries of L2 tables
	refTable table
	l2       cache // by index into l1
	counts   cache // refcount blocks by index into refTable
	hint     int64 // cluster that may be free
	freed    []int64
	zeroes   []byte // a cluster of them

	flushing sync.Mutex // one Flush at a time, taken before mu
}

// Open checks an image and opens it. It doesn't close the file.
func Open(f File, readOnly bool) (*Image, error) {
	size, err := f.Size()
	if err != nil {
		return nil, fmt.Errorf("open a qcow2 image: %w", err)
	}
	i := &Image{file: f, readOnly: readOnly, end: size}
	logical, _ := f.Blocks()
	head, err := i.readAt(0, int64(max(headerSize, logical)))
	if err != nil {
		return nil, fmt.Errorf("read the header of a qcow2 image: %w", err)
	}
	if i.header, err = parseHeader(head, size, readOnly); err != nil {
		return nil, err
	}
	if int64(logical) > i.cluster() {
		return nil, refuse("clusters of %d bytes on blocks of %d", i.cluster(), logical)
	}
	if !readOnly && !i.covers() {
		return nil, refuse("its table of reference counts is too small for clusters of %d bytes; convert it with qemu-img convert -o cluster_size=64k", i.cluster())
	}
	block := int64(logical)
	for _, t := range []struct {
		to    *table
		at, n int64
	}{{&i.l1, i.l1At, int64(i.l1Size) * 8}, {&i.refTable, i.refTableAt, i.refClusters << i.clusterBits}} {
		// Whole blocks, as they are written.
		if t.to.bytes, err = i.readAt(t.at, (t.n+block-1)/block*block); err != nil {
			return nil, fmt.Errorf("read the tables of a qcow2 image: %w", err)
		}
		t.to.at = t.at
	}
	i.l2.init(i.cluster())
	i.counts.init(i.cluster())
	i.zeroes = make([]byte, i.cluster())
	if err := i.scan(); err != nil || readOnly {
		return i, err
	}
	return i, errors.Join(i.fillUp(), i.clearAutoclear())
}

// scan looks at every entry of every table: an image that is damaged, or has
// what isn't known, is refused now and not when a guest comes there.
func (i *Image) scan() error {
	for n := range int64(i.l1Size) {
		t, err := i.l2Table(n)
		if err != nil {
			return err
		}
		for k := int64(0); t != nil && k < 1<<i.l2Bits(); k++ {
			if err := i.checkEntry(t.get(k)); err != nil {
				return err
			}
		}
	}
	return nil
}

// fillUp has the file end with a cluster.
func (i *Image) fillUp() error {
	over := i.end & (i.cluster() - 1)
	if over == 0 {
		return nil
	}
	rest := i.cluster() - over
	if err := i.file.Writev([][]byte{i.zeroes[:rest]}, i.end); err != nil {
		return fmt.Errorf("fill the last cluster of a qcow2 image: %w", err)
	}
	i.end += rest
	return nil
}

// clearAutoclear says that we don't keep up what only those keep up that know
// of it: bitmaps, of which QEMU then knows that they are outdated.
func (i *Image) clearAutoclear() error {
	if i.autoclear == 0 {
		return nil
	}
	logical, _ := i.file.Blocks()
	b, err := i.readAt(0, int64(max(headerSize, logical)))
	if err != nil {
		return fmt.Errorf("read the header of a qcow2 image: %w", err)
	}
	binary.BigEndian.PutUint64(b[autoclearAt:], 0)
	return i.file.Writev([][]byte{b}, 0)
}

// readAt reads n bytes, of which those behind the file's end are zeroes.
func (i *Image) readAt(at, n int64) ([]byte, error) {
	b := make([]byte, n)
	if there := min(n, i.end-at); there > 0 {
		if err := i.file.Readv([][]byte{b[:there]}, at); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// Size implements blk.Disk.
func (i *Image) Size() (int64, error) { return i.size, nil }

// Blocks implements blk.Disk.
func (i *Image) Blocks() (logical, physical int) {
	logical, physical = i.file.Blocks()
	return logical, max(physical, min(int(i.cluster()), 1<<16))
}

func (i *Image) check(off, n int64) error {
	if off < 0 || n < 0 || off > i.size || n > i.size-off {
		return fmt.Errorf("%d bytes at %d of a disk of %d", n, off, i.size)
	}
	return nil
}
