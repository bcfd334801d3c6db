package erofs

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Data is the content of a regular file: whole blocks at Start, and the last
// bytes, when there are few, in memory until they are written beside the
// inode.
type Data struct {
	Size  int64
	Start int64 // byte offset of the blocks; a multiple of BlockSize
	Tail  []byte
}

const (
	// maxTail is the longest rest of a file that is kept beside its inode.
	// An inode and its tail must not straddle a block, so packing longer
	// ones wastes as much as a block of their own does.
	maxTail = BlockSize / 2
	// tailBudget bounds the memory for tails of one image; beyond it they
	// get blocks of their own.
	tailBudget = 64 << 20
	// flushEvery is how much is written before the kernel is asked to begin
	// writing back, so that the final fsync finds little left to do.
	flushEvery = 16 << 20
)

// Writer writes one image to a file, which must be empty.
type Writer struct {
	f     *os.File
	next  atomic.Int64 // first byte that nobody has reserved
	tails atomic.Int64
	dirty atomic.Int64
}

// NewWriter begins an image. The file stays the caller's: it closes it, and
// removes it after an error.
func NewWriter(f *os.File) *Writer {
	w := &Writer{f: f}
	w.next.Store(BlockSize) // block 0 holds the superblock
	return w
}

// Reserve takes n bytes of whole blocks and returns where they begin.
func (w *Writer) Reserve(n int64) int64 {
	n = blocks(n) * BlockSize
	return w.next.Add(n) - n
}

// Allocated is how far the file reaches.
func (w *Writer) Allocated() int64 { return w.next.Load() }

// Store writes exactly size bytes of r, with buf as its scratch, which must
// be a multiple of BlockSize long. Runs of zeros become holes. A short r is
// io.ErrUnexpectedEOF.
func (w *Writer) Store(r io.Reader, size int64, buf []byte) (Data, error) {
	d := Data{Size: size}
	whole := size
	if t := size % BlockSize; t > 0 && t <= maxTail && w.tails.Load()+t <= tailBudget {
		w.tails.Add(t)
		whole -= t
		d.Tail = make([]byte, t)
	}
	if whole > 0 {
		d.Start = w.Reserve(whole)
	}
	for off := int64(0); off < whole; {
		n, err := io.ReadFull(r, buf[:min(int64(len(buf)), whole-off)])
		if err != nil {
			return d, unexpected(err)
		}
		if err := w.writeAt(buf[:n], d.Start+off); err != nil {
			return d, err
		}
		off += int64(n)
	}
	if _, err := io.ReadFull(r, d.Tail); err != nil {
		return d, unexpected(err)
	}
	return d, nil
}

var zeros [64 << 10]byte

// writeAt writes p unless it is all zeros: the file reads as zeros where
// nothing was written.
func (w *Writer) writeAt(p []byte, off int64) error {
	for q := p; ; q = q[len(zeros):] {
		if len(q) <= len(zeros) {
			if bytes.Equal(q, zeros[:len(q)]) {
				return nil
			}
			break
		}
		if !bytes.Equal(q[:len(zeros)], zeros[:]) {
			break
		}
	}
	if _, err := w.f.WriteAt(p, off); err != nil {
		return fmt.Errorf("write image: %w", err)
	}
	if n := w.dirty.Add(int64(len(p))); n >= flushEvery {
		w.dirty.Add(-n)
		// Only a hint: what it can't do, the fsync does.
		_ = unix.SyncFileRange(int(w.f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	}
	return nil
}

// Open reads back what Store wrote.
func (w *Writer) Open(d Data) io.Reader {
	whole := d.Size - int64(len(d.Tail))
	return io.MultiReader(io.NewSectionReader(w.f, d.Start, whole), bytes.NewReader(d.Tail))
}

// Discard gives the blocks of d back; the image must not name them.
func (w *Writer) Discard(d Data) error {
	whole := blocks(d.Size-int64(len(d.Tail))) * BlockSize
	if whole == 0 {
		return nil
	}
	err := unix.Fallocate(int(w.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, d.Start, whole)
	if err == unix.EOPNOTSUPP {
		return nil // the image is larger than it need be, no more
	}
	return err
}

func blocks(n int64) int64 { return (n + BlockSize - 1) / BlockSize }

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
