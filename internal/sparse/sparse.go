// Package sparse copies, writes and sums up large files without filling or
// reading their holes.
package sparse

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"os"

	"golang.org/x/sys/unix"
)

// ErrTooLong says that a stream is longer than allowed.
var ErrTooLong = errors.New("longer than allowed")

// Extent is a part of a file that holds data.
type Extent struct{ Offset, Length int64 }

// Extents are the parts of f that are no holes, in order. A file system that
// doesn't know holes has one for all of it.
func Extents(f *os.File) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		st, err := f.Stat()
		if err != nil {
			yield(Extent{}, err)
			return
		}
		size, fd := st.Size(), int(f.Fd())
		for at := int64(0); at < size; {
			start, err := unix.Seek(fd, at, unix.SEEK_DATA)
			switch {
			case errors.Is(err, unix.ENXIO): // nothing but a hole follows
				return
			case errors.Is(err, unix.EINVAL):
				yield(Extent{at, size - at}, nil)
				return
			case err != nil:
				yield(Extent{}, os.NewSyscallError("lseek", err))
				return
			}
			end, err := unix.Seek(fd, start, unix.SEEK_HOLE)
			if err != nil {
				yield(Extent{}, os.NewSyscallError("lseek", err))
				return
			}
			if end = min(end, size); end <= start || !yield(Extent{start, end - start}, nil) {
				return
			}
			at = end
		}
	}
}

// piece is how much is copied between two looks at the context.
const piece = 64 << 20

// Copy makes dst, an empty file, what src is: sharing its blocks where the
// file system can, else copying data and leaving holes. Both offsets end up
// anywhere. Progress is told bytes of data that are done; it may be nil.
func Copy(ctx context.Context, dst, src *os.File, progress func(done, total int64)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) == nil {
		return nil
	}
	st, err := src.Stat()
	if err != nil {
		return err
	}
	if err := dst.Truncate(st.Size()); err != nil {
		return err
	}
	var extents []Extent
	total, done := int64(0), int64(0)
	for e, err := range Extents(src) {
		if err != nil {
			return err
		}
		extents = append(extents, e)
		total += e.Length
	}
	for _, e := range extents {
		for e.Length > 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
			n, err := copyRange(dst, src, e.Offset, min(e.Length, piece))
			if err != nil {
				return err
			}
			e.Offset, e.Length, done = e.Offset+n, e.Length-n, done+n
			if progress != nil {
				progress(done, total)
			}
		}
	}
	return nil
}

// copyRange copies at least one byte at an offset.
func copyRange(dst, src *os.File, offset, length int64) (int64, error) {
	from, to := offset, offset
	n, err := unix.CopyFileRange(int(src.Fd()), &from, int(dst.Fd()), &to, int(length), 0)
	switch {
	case n > 0:
		return int64(n), nil
	case err == nil:
		return 0, io.ErrUnexpectedEOF // it became shorter
	case !errors.Is(err, unix.EXDEV) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EOPNOTSUPP):
		return 0, os.NewSyscallError("copy_file_range", err)
	}
	// Two file systems, one of which can't do it.
	m, err := io.CopyBuffer(io.NewOffsetWriter(dst, offset), io.NewSectionReader(src, offset, length), make([]byte, 1<<20))
	if err == nil && m == 0 {
		err = io.ErrUnexpectedEOF
	}
	return m, err
}

// block is the unit in which zeros become holes: that of most file systems.
const block = 4096

var zeros [block]byte

// IsZero tells whether all of b is zero.
func IsZero(b []byte) bool {
	for len(b) > block {
		if !bytes.Equal(b[:block], zeros[:]) {
			return false
		}
		b = b[block:]
	}
	return bytes.Equal(b, zeros[:len(b)])
}

// WriteAt writes b to f without the blocks of it that are zero; f has a hole
// there. The file's size may stay behind.
func WriteAt(f *os.File, b []byte, offset int64) error {
	for len(b) > 0 {
		skip := 0
		for skip < len(b) && IsZero(b[skip:min(skip+block, len(b))]) {
			skip = min(skip+block, len(b))
		}
		b, offset = b[skip:], offset+int64(skip)
		n := 0
		for n < len(b) && !IsZero(b[n:min(n+block, len(b))]) {
			n = min(n+block, len(b))
		}
		if n == 0 {
			continue
		}
		if _, err := f.WriteAt(b[:n], offset); err != nil {
			return err
		}
		b, offset = b[n:], offset+int64(n)
	}
	return nil
}
