package sparse

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"io"
	"os"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// ChunkSize is the unit of a Hash.
const ChunkSize = 1 << 20

// Hash sums up a large file in chunks, which may come in any order, on all
// processors. Chunks of zeros count for nothing, so that it doesn't matter
// which of them are holes. The zero value is ready for use.
//
// The digest is the SHA-256 of the file's size and then, for each chunk that
// isn't zero, its number and the SHA-256 of its bytes (numbers as 64 bits,
// big-endian; the last chunk as long as it is).
type Hash struct {
	once sync.Once
	free chan []byte // buffers, each for one chunk being summed up
	work sync.WaitGroup

	mu   sync.Mutex
	sums []chunkSum
}

type chunkSum struct {
	number int64
	sum    [sha256.Size]byte
}

// Buffer waits for room to hold one chunk, which Add gives back.
func (h *Hash) Buffer() []byte {
	h.once.Do(func() {
		n := runtime.GOMAXPROCS(0) + 1
		h.free = make(chan []byte, n)
		for range n {
			h.free <- nil
		}
	})
	b := <-h.free
	if b == nil {
		b = make([]byte, ChunkSize)
	}
	return b[:ChunkSize]
}

// Add sums up a chunk in a Buffer, which then belongs to the Hash again. All
// but the file's last chunk are whole.
func (h *Hash) Add(number int64, chunk []byte) {
	if IsZero(chunk) {
		h.free <- chunk[:cap(chunk)]
		return
	}
	h.work.Go(func() {
		s := chunkSum{number, sha256.Sum256(chunk)}
		h.free <- chunk[:cap(chunk)]
		h.mu.Lock()
		h.sums = append(h.sums, s)
		h.mu.Unlock()
	})
}

// Sum waits for all chunks and returns the digest of a file of that size.
func (h *Hash) Sum(size int64) string {
	h.work.Wait()
	slices.SortFunc(h.sums, func(a, b chunkSum) int { return cmp.Compare(a.number, b.number) })
	all := sha256.New()
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(size))
	all.Write(n[:])
	for _, s := range h.sums {
		binary.BigEndian.PutUint64(n[:], uint64(s.number))
		all.Write(n[:])
		all.Write(s.sum[:])
	}
	return "sha256:" + hex.EncodeToString(all.Sum(nil))
}

// Digest sums up a file. Progress is told bytes of the file; it may be nil.
func Digest(ctx context.Context, f *os.File, progress func(done, total int64)) (string, error) {
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	size, next := st.Size(), int64(0)
	var h Hash
	defer h.work.Wait()
	for e, err := range Extents(f) {
		if err != nil {
			return "", err
		}
		for n := max(next, e.Offset/ChunkSize); n*ChunkSize < e.Offset+e.Length; n++ {
			if err := ctx.Err(); err != nil {
				return "", err
			}
			b := h.Buffer()[:min(ChunkSize, size-n*ChunkSize)]
			if _, err := f.ReadAt(b, n*ChunkSize); err != nil {
				if err == io.EOF {
					err = io.ErrUnexpectedEOF
				}
				return "", err
			}
			h.Add(n, b)
			next = n + 1
			if progress != nil {
				progress(n*ChunkSize+int64(len(b)), size)
			}
		}
	}
	return h.Sum(size), nil
}

// Fill writes a stream to f, an empty file, with holes for its zeros, until
// it ends; a stream longer than limit is ErrTooLong. If h is not nil, it sums
// up what is written.
func Fill(ctx context.Context, f *os.File, r io.Reader, h *Hash, limit int64, progress func(done int64)) (size int64, err error) {
	var own [ChunkSize]byte
	if h != nil {
		defer h.work.Wait()
	}
	for n := int64(0); ; n++ {
		if err := ctx.Err(); err != nil {
			return size, err
		}
		b := own[:]
		if h != nil {
			b = h.Buffer()
		}
		got, err := fill(r, b)
		if err != nil && err != io.EOF {
			return size, err
		}
		if size+int64(got) > limit {
			return size, ErrTooLong
		}
		if err := WriteAt(f, b[:got], size); err != nil {
			return size, err
		}
		size += int64(got)
		if n%16 == 15 {
			// The disk works meanwhile, instead of when all must be on it.
			_ = unix.SyncFileRange(int(f.Fd()), 0, size, unix.SYNC_FILE_RANGE_WRITE)
		}
		if h != nil {
			h.Add(n, b[:got])
		}
		if progress != nil {
			progress(size)
		}
		if err == io.EOF {
			return size, f.Truncate(size)
		}
	}
}

// fill reads until b is full. Unlike io.ReadFull it doesn't make a stream
// that is cut off (io.ErrUnexpectedEOF) look like one that ends.
func fill(r io.Reader, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var m int
		m, err = r.Read(b[n:])
		n += m
	}
	return n, err
}
