package disk

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"

	"github.com/klauspost/compress/zlib"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/internal/sparse"
)

// Sizes of what writeVMDK writes, those that VMware itself uses.
const (
	grain          = 64 << 10
	grainsPerTable = 512
	vmdkOverhead   = grain / 512 // sectors before the first grain
	vmdkDescriptor = 20          // sectors
	atEnd          = 1<<64 - 1   // where the grain directory is: see the footer
)

// Kinds of markers (VMware, Virtual Disk Format 5.0, "Stream-Optimized").
const (
	markEnd = iota
	markTable
	markDirectory
	markFooter
)

// vmdkOut writes a stream-optimized vmdk from beginning to end.
type vmdkOut struct {
	w         *bufio.Writer // whose Flush tells what failed
	at        uint32        // sectors written
	capacity  uint64        // sectors
	table     [grainsPerTable]uint32
	current   int64    // number of the table being filled, -1 for none
	directory []uint32 // where each table is
}

// writeVMDK writes a raw file as a compressed vmdk, called name in its own
// descriptor. What is zero takes no room.
func writeVMDK(ctx context.Context, from *os.File, name string, w io.Writer) error {
	st, err := from.Stat()
	if err != nil {
		return err
	}
	if st.Size() > 2<<40 {
		return api.Errorf(api.CodeUnsupported, "a vmdk holds at most 2 TiB").WithHint("export it as qcow2")
	}
	o := &vmdkOut{w: bufio.NewWriterSize(w, 1<<20), capacity: uint64(ceil(st.Size(), 512)), current: -1}
	o.directory = make([]uint32, ceil(ceil(st.Size(), grain), grainsPerTable))
	o.begin(name)
	batch := newBatch()
	next := int64(0)
	for e, err := range sparse.Extents(from) {
		if err != nil {
			return err
		}
		for n := max(next, e.Offset/grain); n*grain < e.Offset+e.Length; n++ {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := batch.add(from, n); err != nil {
				return err
			}
			if batch.full() {
				if err := o.grains(batch); err != nil {
					return err
				}
			}
			next = n + 1
		}
	}
	if err := o.grains(batch); err != nil {
		return err
	}
	o.end()
	return o.w.Flush()
}

// sector writes b, padded to whole sectors.
func (o *vmdkOut) sector(b []byte) {
	_, _ = o.w.Write(b)
	if odd := len(b) % 512; odd != 0 {
		_, _ = o.w.Write(make([]byte, 512-odd))
	}
	o.at += uint32(ceil(int64(len(b)), 512))
}

func (o *vmdkOut) header(directory uint64) []byte {
	h := make([]byte, 512)
	copy(h, vmdkMagic)
	le.PutUint32(h[4:], 3)
	le.PutUint32(h[8:], 1|1<<16|1<<17) // newlines tested, compressed, markers
	le.PutUint64(h[12:], o.capacity)
	le.PutUint64(h[20:], grain/512)
	le.PutUint64(h[28:], 1)
	le.PutUint64(h[36:], vmdkDescriptor)
	le.PutUint32(h[44:], grainsPerTable)
	le.PutUint64(h[56:], directory)
	le.PutUint64(h[64:], vmdkOverhead)
	copy(h[73:], "\n \r\n")
	le.PutUint16(h[77:], 1) // deflate
	return h
}

func (o *vmdkOut) begin(name string) {
	o.sector(o.header(atEnd))
	text := fmt.Sprintf(`# Disk DescriptorFile
version=1
CID=%08x
parentCID=ffffffff
createType="streamOptimized"

# Extent description
RW %d SPARSE "%s"

# The Disk Data Base
#DDB

ddb.virtualHWVersion = "13"
ddb.geometry.cylinders = "%d"
ddb.geometry.heads = "255"
ddb.geometry.sectors = "63"
ddb.adapterType = "lsilogic"
`, uint32(o.capacity)|1, o.capacity, name, min(max(o.capacity/(255*63), 1), 65535))
	o.sector(append([]byte(text), make([]byte, vmdkDescriptor*512-len(text))...))
	o.sector(make([]byte, (vmdkOverhead-1-vmdkDescriptor)*512))
}

func (o *vmdkOut) marker(kind uint32, sectors int) {
	m := make([]byte, 512)
	le.PutUint64(m, uint64(sectors))
	le.PutUint32(m[12:], kind)
	o.sector(m)
}

// grains writes a batch, compressed, and a table after the last of its
// grains.
func (o *vmdkOut) grains(b *batch) error {
	if err := b.compress(); err != nil {
		return err
	}
	for _, g := range b.grains {
		if g.zero {
			continue
		}
		if t := g.number / grainsPerTable; t != o.current {
			o.endTable()
			o.current = t
		}
		o.table[g.number%grainsPerTable] = o.at
		head := make([]byte, 12, 12+g.packed.Len())
		le.PutUint64(head, uint64(g.number)*(grain/512))
		le.PutUint32(head[8:], uint32(g.packed.Len()))
		o.sector(append(head, g.packed.Bytes()...))
	}
	b.grains = b.grains[:0]
	return nil
}

func (o *vmdkOut) endTable() {
	if o.current < 0 {
		return
	}
	o.marker(markTable, grainsPerTable*4/512)
	o.directory[o.current] = o.at
	o.sector(words(o.table[:]))
	o.table = [grainsPerTable]uint32{}
}

func (o *vmdkOut) end() {
	o.endTable()
	b := words(o.directory)
	o.marker(markDirectory, int(ceil(int64(len(b)), 512)))
	at := o.at
	o.sector(b)
	o.marker(markFooter, 1)
	o.sector(o.header(uint64(at)))
	o.marker(markEnd, 0)
}

func words(w []uint32) []byte {
	b := make([]byte, 0, len(w)*4)
	for _, v := range w {
		b = le.AppendUint32(b, v)
	}
	return b
}

// batch is so many grains that all processors have some to compress.
type batch struct{ grains []*packed }

type packed struct {
	number int64
	zero   bool
	plain  []byte
	packed bytes.Buffer
	z      *zlib.Writer
}

func newBatch() *batch {
	return &batch{grains: make([]*packed, 0, 16*runtime.GOMAXPROCS(0))}
}

func (b *batch) full() bool { return len(b.grains) == cap(b.grains) }

// add reads a grain; what was read in an earlier round gives the memory.
func (b *batch) add(from *os.File, number int64) error {
	b.grains = b.grains[:len(b.grains)+1]
	g := b.grains[len(b.grains)-1]
	if g == nil {
		g = &packed{plain: make([]byte, grain)}
		b.grains[len(b.grains)-1] = g
	}
	g.number = number
	n, err := from.ReadAt(g.plain, number*grain)
	if err != nil && err != io.EOF {
		return err
	}
	clear(g.plain[n:])
	return nil
}

func (b *batch) compress() error {
	var work sync.WaitGroup
	errs := make([]error, min(runtime.GOMAXPROCS(0), len(b.grains)))
	for i := range errs {
		work.Go(func() {
			for n := i; n < len(b.grains) && errs[i] == nil; n += len(errs) {
				errs[i] = b.grains[n].pack()
			}
		})
	}
	work.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (g *packed) pack() (err error) {
	g.packed.Reset()
	if g.zero = sparse.IsZero(g.plain); g.zero {
		return nil
	}
	if g.z == nil {
		if g.z, err = zlib.NewWriterLevel(&g.packed, zlib.BestSpeed); err != nil {
			return err
		}
	}
	g.z.Reset(&g.packed)
	if _, err := g.z.Write(g.plain); err != nil {
		return err
	}
	return g.z.Close()
}
