package blk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/vmm/virtio"
)

// File is a Disk in a file or on a block device, as it is: raw. Requests go
// between it and the guest's memory without a copy, except with O_DIRECT where
// memory isn't aligned as that needs.
type File struct {
	file              *os.File
	logical, physical int
	align             int // of memory and offsets for O_DIRECT; 0 without it

	iovecs sync.Pool // of *[]unix.Iovec
	// What the file system refused once isn't tried again.
	noTryWrite, noPunch, noZero atomic.Bool
}

// maxIovecs is how many pieces a call takes (UIO_MAXIOV).
const maxIovecs = 1024

// NewFile returns a disk in an open file, which it doesn't close.
func NewFile(f *os.File) (*File, error) {
	d := &File{file: f, logical: SectorSize, physical: 4096}
	d.iovecs.New = func() any { return new([]unix.Iovec) }
	var st unix.Stat_t
	if err := unix.Fstat(d.fd(), &st); err != nil {
		return nil, fmt.Errorf("disk %s: %w", f.Name(), err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFBLK:
		var err error
		if d.logical, err = unix.IoctlGetInt(d.fd(), unix.BLKSSZGET); err == nil {
			d.physical, err = unix.IoctlGetInt(d.fd(), unix.BLKPBSZGET)
		}
		if err != nil {
			return nil, fmt.Errorf("block sizes of %s: %w", f.Name(), err)
		}
		d.physical = max(d.physical, d.logical)
	default:
		return nil, fmt.Errorf("disk %s is neither a file nor a block device", f.Name())
	}
	flags, err := unix.FcntlInt(uintptr(d.fd()), unix.F_GETFL, 0)
	if err != nil {
		return nil, fmt.Errorf("disk %s: %w", f.Name(), err)
	}
	if flags&unix.O_DIRECT != 0 {
		d.align = d.directAlign()
		d.logical = max(d.logical, d.align)
		d.physical = max(d.physical, d.logical)
	}
	return d, nil
}

// directAlign is what O_DIRECT wants of offsets and memory (statx(2), since
// Linux 6.1); a page suits whoever doesn't say.
func (d *File) directAlign() int {
	var st unix.Statx_t
	err := unix.Statx(d.fd(), "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &st)
	if n := int(max(st.Dio_mem_align, st.Dio_offset_align)); err == nil && st.Mask&unix.STATX_DIOALIGN != 0 && n >= SectorSize && n&(n-1) == 0 {
		return n
	}
	return 4096
}

func (d *File) fd() int { return int(d.file.Fd()) }

// Size implements Disk.
func (d *File) Size() (int64, error) {
	return d.file.Seek(0, io.SeekEnd) // of a block device, too
}

// Blocks implements Disk.
func (d *File) Blocks() (logical, physical int) { return d.logical, d.physical }

// Readv implements Disk.
func (d *File) Readv(pieces [][]byte, off int64) error {
	return d.all(unix.SYS_PREADV2, pieces, off)
}

// Writev implements Disk.
func (d *File) Writev(pieces [][]byte, off int64) error {
	return d.all(unix.SYS_PWRITEV2, pieces, off)
}

// TryReadv is Readv of what the page cache has.
func (d *File) TryReadv(pieces [][]byte, off int64) bool {
	return d.try(unix.SYS_PREADV2, pieces, off) == nil
}

// TryWritev is Writev into the page cache, where the file system can tell
// that it needs nothing else for it. ext4 can't.
func (d *File) TryWritev(pieces [][]byte, off int64) bool {
	if d.noTryWrite.Load() {
		return false
	}
	err := d.try(unix.SYS_PWRITEV2, pieces, off)
	d.noTryWrite.Store(err == unix.EOPNOTSUPP)
	return err == nil
}

// try moves all at once, without waiting for the disk.
func (d *File) try(call uintptr, pieces [][]byte, off int64) error {
	if d.align != 0 {
		return unix.EAGAIN
	}
	v := d.iovecs.Get().(*[]unix.Iovec)
	defer d.release(v)
	var size int
	*v, size = iovec((*v)[:0], pieces)
	n, err := d.call(call, *v, off, unix.RWF_NOWAIT)
	if err == nil && n < size {
		err = unix.EAGAIN
	}
	return err
}

// all moves all, however often that takes.
func (d *File) all(call uintptr, pieces [][]byte, off int64) error {
	if d.align != 0 && !aligned(pieces, d.align) {
		return d.bounce(call, pieces, off)
	}
	v := d.iovecs.Get().(*[]unix.Iovec)
	defer d.release(v)
	var size int
	*v, size = iovec((*v)[:0], pieces)
	for rest := *v; size > 0; {
		n, err := d.call(call, rest, off, 0)
		switch {
		case err != nil:
			return fmt.Errorf("%d bytes at %d of disk %s: %w", size, off, d.file.Name(), err)
		case n == 0:
			return fmt.Errorf("%d bytes at %d of disk %s: %w", size, off, d.file.Name(), io.ErrUnexpectedEOF)
		}
		size -= n
		off += int64(n)
		rest = advance(rest, n)
	}
	return nil
}

// release keeps v for another, without the addresses of memory that may be
// gone by then.
func (d *File) release(v *[]unix.Iovec) {
	clear(*v)
	d.iovecs.Put(v)
}

func (d *File) call(call uintptr, v []unix.Iovec, off int64, flags uintptr) (int, error) {
	if len(v) == 0 {
		return 0, nil
	}
	for {
		// The offset's high half is for machines of 32 bits.
		n, _, errno := unix.Syscall6(call, uintptr(d.fd()), uintptr(unsafe.Pointer(&v[0])), uintptr(min(len(v), maxIovecs)), uintptr(off), 0, flags)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// iovec appends pieces of some bytes to v.
func iovec(v []unix.Iovec, pieces [][]byte) (_ []unix.Iovec, size int) {
	for _, p := range pieces {
		if len(p) > 0 {
			v = append(v, unix.Iovec{Base: &p[0], Len: uint64(len(p))})
			size += len(p)
		}
	}
	return v, size
}

// advance takes n bytes off the front of v.
func advance(v []unix.Iovec, n int) []unix.Iovec {
	for len(v) > 0 && uint64(n) >= v[0].Len {
		n -= int(v[0].Len)
		v = v[1:]
	}
	if n > 0 {
		v[0].Base = (*byte)(unsafe.Add(unsafe.Pointer(v[0].Base), n))
		v[0].Len -= uint64(n)
	}
	return v
}

func aligned(pieces [][]byte, align int) bool {
	for _, p := range pieces {
		if (uintptr(unsafe.Pointer(unsafe.SliceData(p)))|uintptr(len(p)))&uintptr(align-1) != 0 {
			return false
		}
	}
	return true
}

// bounceSize is how much of a request that isn't aligned is copied at once.
const bounceSize = 256 << 10

// bounce moves what O_DIRECT can't by way of memory that it can.
func (d *File) bounce(call uintptr, pieces [][]byte, off int64) error {
	if (int(off)|virtio.Length(pieces))&(d.align-1) != 0 {
		return fmt.Errorf("%d bytes at %d of disk %s, which has blocks of %d: %w", virtio.Length(pieces), off, d.file.Name(), d.align, unix.EINVAL)
	}
	b := make([]byte, bounceSize+d.align)
	if r := int(uintptr(unsafe.Pointer(&b[0])) & uintptr(d.align-1)); r != 0 {
		b = b[d.align-r:]
	}
	b = b[:bounceSize]
	at := 0
	for rest := virtio.Length(pieces); rest > 0; {
		n := min(rest, len(b))
		if call == unix.SYS_PWRITEV2 {
			copyPieces(pieces, at, b[:n], false)
		}
		if err := d.all(call, [][]byte{b[:n]}, off+int64(at)); err != nil {
			return err
		}
		if call == unix.SYS_PREADV2 {
			copyPieces(pieces, at, b[:n], true)
		}
		rest -= n
		at += n
	}
	return nil
}

// copyPieces copies between b and what is at an offset of pieces.
func copyPieces(pieces [][]byte, at int, b []byte, into bool) {
	for _, p := range pieces {
		if at >= len(p) {
			at -= len(p)
			continue
		}
		p, at = p[at:], 0
		var n int
		if into {
			n = copy(p, b)
		} else {
			n = copy(b, p)
		}
		if b = b[n:]; len(b) == 0 {
			return
		}
	}
}

// Data finds the first part from an offset on that may be other than zero, in
// bytes; without one from is the disk's size.
func (d *File) Data(off int64) (from, end int64, err error) {
	size, err := d.Size()
	if err != nil || off >= size {
		return size, size, err
	}
	from, err = d.file.Seek(off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size, size, nil
	case errors.Is(err, unix.EINVAL): // a device knows of no holes
		return off, size, nil
	case err == nil:
		end, err = d.file.Seek(from, unix.SEEK_HOLE)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("find out what of disk %s is used: %w", d.file.Name(), err)
	}
	return from, end, nil
}

// Flush implements Disk.
func (d *File) Flush() error {
	for {
		err := unix.Fdatasync(d.fd())
		if err == nil {
			return nil
		}
		if err != unix.EINTR {
			return fmt.Errorf("flush disk %s: %w", d.file.Name(), err)
		}
	}
}

// Discard implements Disk. Where no holes can be made, it does nothing.
func (d *File) Discard(off, n int64) error {
	err := d.allocate(unix.FALLOC_FL_PUNCH_HOLE, off, n, &d.noPunch)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

// WriteZeroes implements Disk.
func (d *File) WriteZeroes(off, n int64, unmap bool) error {
	err := error(unix.EOPNOTSUPP)
	if unmap {
		err = d.allocate(unix.FALLOC_FL_PUNCH_HOLE, off, n, &d.noPunch)
	}
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = d.allocate(unix.FALLOC_FL_ZERO_RANGE, off, n, &d.noZero)
	}
	if !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	zeroes := make([]byte, min(n, bounceSize))
	for end := off + n; off < end; off += int64(len(zeroes)) {
		zeroes = zeroes[:min(int64(len(zeroes)), end-off)]
		if err := d.Writev([][]byte{zeroes}, off); err != nil {
			return err
		}
	}
	return nil
}

// allocate is fallocate(2), unless that was refused before.
func (d *File) allocate(mode uint32, off, n int64, refused *atomic.Bool) error {
	if refused.Load() {
		return unix.EOPNOTSUPP
	}
	for {
		switch err := unix.Fallocate(d.fd(), mode|unix.FALLOC_FL_KEEP_SIZE, off, n); err {
		case nil:
			return nil
		case unix.EINTR:
		case unix.EOPNOTSUPP, unix.ENOSYS:
			refused.Store(true)
			return unix.EOPNOTSUPP
		default:
			return fmt.Errorf("%d bytes at %d of disk %s: %w", n, off, d.file.Name(), err)
		}
	}
}
