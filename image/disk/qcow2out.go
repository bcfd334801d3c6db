package disk

import (
	"bufio"
	"context"
	"io"
	"os"

	"github.com/cleave-project/cleave/internal/sparse"
)

// Sizes of what writeQcow2 writes. Clusters of 64 KiB are what QEMU makes;
// counts of references have 16 bits.
const (
	clusterBits = 16
	cluster     = 1 << clusterBits
	perTable    = cluster / 8 // entries of 8 bytes
	perCount    = cluster / 2 // clusters counted by one block
	copied      = 1 << 63     // QCOW_OFLAG_COPIED: the cluster has one reference
)

// layout is where in a qcow2 file everything is, in clusters: the header, the
// table of tables (L1), the tables (L2), the table of reference counts and
// their blocks, then data. Known beforehand, the file can be written from
// beginning to end, into a pipe as well.
type layout struct {
	size         int64
	data         []int64 // numbers of the disk's clusters that have data, ascending
	l1, l2       int64   // clusters of L1, number of L2 tables
	table, block int64   // clusters of the reference table, number of blocks
	tables       map[int64]int64
}

// plan looks for the clusters of a raw file that hold data.
func plan(ctx context.Context, from *os.File) (*layout, error) {
	st, err := from.Stat()
	if err != nil {
		return nil, err
	}
	l := &layout{size: st.Size(), tables: map[int64]int64{}}
	next := int64(0)
	for e, err := range sparse.Extents(from) {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return nil, err
		}
		for n := max(next, e.Offset>>clusterBits); n<<clusterBits < e.Offset+e.Length; n++ {
			if _, ok := l.tables[n/perTable]; !ok {
				l.tables[n/perTable] = int64(len(l.tables))
			}
			l.data = append(l.data, n)
			next = n + 1
		}
	}
	l.l2 = int64(len(l.tables))
	entries := ceil(ceil(l.size, cluster), perTable)
	l.l1 = max(ceil(entries*8, cluster), 1)
	// The counts count their own clusters too.
	for l.block == 0 || l.block*perCount < l.clusters() {
		l.block++
		l.table = ceil(l.block*8, cluster)
	}
	return l, nil
}

func ceil(a, b int64) int64 { return (a + b - 1) / b }

func (l *layout) clusters() int64 { return l.dataAt() + int64(len(l.data)) }
func (l *layout) tableAt() int64  { return 1 + l.l1 + l.l2 }
func (l *layout) dataAt() int64   { return l.tableAt() + l.table + l.block }

// writeQcow2 writes a raw file as qcow2 of version 3 (QEMU
// docs/interop/qcow2.txt), as it comes, without a file in between.
func writeQcow2(ctx context.Context, from *os.File, w io.Writer) error {
	l, err := plan(ctx, from)
	if err != nil {
		return err
	}
	b := bufio.NewWriterSize(w, 1<<20)
	l.header(b)
	l.writeTables(b)
	l.writeCounts(b)
	buf := make([]byte, cluster)
	for _, n := range l.data {
		if err := ctx.Err(); err != nil {
			return err
		}
		got, err := from.ReadAt(buf, n<<clusterBits)
		if err != nil && err != io.EOF {
			return err
		}
		clear(buf[got:])
		if _, err := b.Write(buf); err != nil {
			return err
		}
	}
	return b.Flush()
}

// header and those below write to a buffer whose Flush tells what failed.
func (l *layout) header(w *bufio.Writer) {
	h := make([]byte, cluster)
	copy(h, qcow2Magic)
	be.PutUint32(h[4:], 3)
	be.PutUint32(h[20:], clusterBits)
	be.PutUint64(h[24:], uint64(l.size))
	be.PutUint32(h[36:], uint32(ceil(ceil(l.size, cluster), perTable)))
	be.PutUint64(h[40:], cluster)
	be.PutUint64(h[48:], uint64(l.tableAt()<<clusterBits))
	be.PutUint32(h[56:], uint32(l.table))
	be.PutUint32(h[96:], 4) // counts of 2^4 bits
	be.PutUint32(h[100:], 104)
	_, _ = w.Write(h)
}

func (l *layout) writeTables(w *bufio.Writer) {
	l1 := make([]byte, l.l1*cluster)
	for number, at := range l.tables {
		be.PutUint64(l1[number*8:], copied|uint64((1+l.l1+at)<<clusterBits))
	}
	_, _ = w.Write(l1)
	l2 := make([]byte, cluster)
	for i, n := range l.data {
		be.PutUint64(l2[n%perTable*8:], copied|uint64((l.dataAt()+int64(i))<<clusterBits))
		if i+1 == len(l.data) || l.data[i+1]/perTable != n/perTable {
			_, _ = w.Write(l2)
			clear(l2)
		}
	}
}

func (l *layout) writeCounts(w *bufio.Writer) {
	table := make([]byte, l.table*cluster)
	for i := range l.block {
		be.PutUint64(table[i*8:], uint64((l.tableAt()+l.table+i)<<clusterBits))
	}
	_, _ = w.Write(table)
	block := make([]byte, cluster)
	for left := l.clusters(); left > 0; left -= perCount {
		clear(block)
		for i := range min(left, perCount) {
			be.PutUint16(block[i*2:], 1)
		}
		_, _ = w.Write(block)
	}
}
