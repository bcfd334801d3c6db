// Package memory is a guest's physical memory: a memfd outside of Go's heap,
// mapped at two places with the hole below 4 GiB between them in which
// devices live. Whatever a guest says about an address passes through here
// once and is checked here.
//
// The guest writes its memory at any time. What is read from it may have
// changed when it is read again: a caller copies what it decides upon.
package memory

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sort"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// The layout below 4 GiB.
const (
	// HoleStart is where memory ends at the latest, below 4 GiB.
	HoleStart = 3 << 30
	// HoleEnd is where the rest of it goes on.
	HoleEnd = 4 << 30
	// PageSize is the least that can be mapped.
	PageSize = 4096
)

// ErrOutside is what a guest gets told of that names memory it doesn't have.
var ErrOutside = errors.New("outside of the guest's memory")

// Region is a piece of memory that is contiguous for guest and host.
type Region struct {
	Guest  uint64 // physical address
	Offset int64  // in the file
	Host   []byte
	// Pluggable is memory that the guest isn't told of at its start: a device
	// gives it to it (virtio 1.2, 5.15).
	Pluggable bool
}

// End is the first address behind it.
func (r *Region) End() uint64 { return r.Guest + uint64(len(r.Host)) }

// Memory is all of a guest's memory. Its methods may be called from any
// goroutine until Close.
type Memory struct {
	file    *os.File
	size    uint64   // without what is pluggable
	regions []Region // by address, without overlap
	lent    []Region // what is no part of it: Lend
	private bool     // a copy of the file's content
	written atomic.Pointer[[][]uint64]
	absent  atomic.Pointer[Absent] // nil for what is all here
}

// Options of New.
type Options struct {
	// HugePages has it in pages of 2 MiB, which must be there.
	HugePages bool
	// Pluggable is how many bytes there are beside, from PluggableAddr on.
	Pluggable uint64
}

// sectionSize is that of the largest sections in which Linux takes memory
// that wasn't there at its start.
const sectionSize = 2 << 30

// PluggableAddr is where pluggable memory begins beside some bytes of memory,
// and whatever else is to lie above that.
func PluggableAddr(size uint64) uint64 {
	end := uint64(HoleEnd)
	if size > HoleStart {
		end += size - HoleStart
	}
	return (end + sectionSize - 1) / sectionSize * sectionSize
}

// hugePage is the size of a huge page on x86-64.
const hugePage = 2 << 20

// New makes memory of size bytes, all zero. None of it takes the host's
// until it is written.
func New(size uint64, o Options) (*Memory, error) {
	unit, flags := uint64(PageSize), unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING
	if o.HugePages {
		unit, flags = hugePage, flags|unix.MFD_HUGETLB|unix.MFD_HUGE_2MB
	}
	if size == 0 || size%unit != 0 || o.Pluggable%unit != 0 {
		return nil, fmt.Errorf("memory of %d bytes and %d pluggable ones: not positive multiples of %d", size, o.Pluggable, unit)
	}
	if o.HugePages && o.Pluggable > 0 {
		return nil, errors.New("memory that can grow can't be in huge pages, which would all be taken at once")
	}
	fd, err := unix.MemfdCreate("guest-memory", flags)
	if err != nil {
		return nil, fmt.Errorf("make the guest's memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), "guest-memory")
	if err := f.Truncate(int64(size + o.Pluggable)); err != nil {
		f.Close()
		return nil, fmt.Errorf("make %d bytes of memory: %w", size, err)
	}
	// Nobody who shares the file can take it from under us.
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		f.Close()
		return nil, fmt.Errorf("seal the guest's memory: %w", err)
	}
	sharing := unix.MAP_SHARED | unix.MAP_NORESERVE
	if o.HugePages {
		sharing = unix.MAP_SHARED // all of them are ours now, or there are too few
	}
	m, err := mapFile(f, size, o.Pluggable, sharing)
	if err != nil {
		f.Close()
	}
	if o.HugePages && errors.Is(err, unix.ENOMEM) {
		err = fmt.Errorf("%w: it takes %d huge pages of 2 MiB that are free; /proc/sys/vm/nr_hugepages is how many the host sets aside", err, size/hugePage)
	}
	return m, err
}

// Map lays a file of size bytes out as a guest's memory; sharing is
// unix.MAP_SHARED, or unix.MAP_PRIVATE for a copy that is made page by page
// as the guest writes. It takes the file over.
func Map(f *os.File, size uint64, sharing int) (*Memory, error) {
	return MapPluggable(f, size, 0, sharing)
}

// MapPluggable is Map of a file of size bytes and those that are pluggable.
func MapPluggable(f *os.File, size, pluggable uint64, sharing int) (*Memory, error) {
	return mapFile(f, size, pluggable, sharing|unix.MAP_NORESERVE)
}

func mapFile(f *os.File, size, pluggable uint64, flags int) (*Memory, error) {
	m := &Memory{file: f, size: size, private: flags&unix.MAP_PRIVATE != 0}
	for _, r := range layout(size, pluggable) {
		host, err := unix.Mmap(int(f.Fd()), r.offset, int(r.size), unix.PROT_READ|unix.PROT_WRITE, flags)
		if err != nil {
			_ = m.unmap() // what there is of it
			return nil, fmt.Errorf("map %d bytes of the guest's memory: %w", r.size, err)
		}
		m.regions = append(m.regions, Region{Guest: r.guest, Offset: r.offset, Host: host, Pluggable: r.offset >= int64(size)})
	}
	return m, nil
}

type piece struct {
	guest  uint64
	offset int64
	size   uint64
}

func layout(size, pluggable uint64) []piece {
	low := min(size, HoleStart)
	out := []piece{{0, 0, low}}
	if size > low {
		out = append(out, piece{HoleEnd, int64(low), size - low})
	}
	if pluggable > 0 {
		out = append(out, piece{PluggableAddr(size), int64(size), pluggable})
	}
	return out
}

// Close unmaps it. Nobody may use a slice of it any more.
func (m *Memory) Close() error {
	m.Abandon()
	return errors.Join(m.unmap(), m.file.Close())
}

func (m *Memory) unmap() error {
	var errs []error
	for _, r := range m.regions {
		errs = append(errs, unix.Munmap(r.Host))
	}
	m.regions = nil
	return errors.Join(errs...)
}

// Size is how many bytes there are, without those that are pluggable.
func (m *Memory) Size() uint64 { return m.size }

// FileSize is how many bytes its file has: all of them.
func (m *Memory) FileSize() uint64 {
	last := &m.regions[len(m.regions)-1]
	return uint64(last.Offset) + uint64(len(last.Host))
}

// Lend has a device find other memory at an address that is none of the
// regions'. It is no part of what is saved, and what a device writes there is
// not noted. It is called before anybody else uses m.
func (m *Memory) Lend(addr uint64, host []byte) {
	m.lent = append(m.lent, Region{Guest: addr, Host: host})
}

// Regions are its pieces, by address.
func (m *Memory) Regions() []Region { return m.regions }

// File is what it is kept in.
func (m *Memory) File() *os.File { return m.file }

// Slice is n bytes of memory at a physical address, which lie in one region. It
// waits for what is elsewhere (Absent).
func (m *Memory) Slice(addr, n uint64) ([]byte, error) {
	i := sort.Search(len(m.regions), func(i int) bool { return m.regions[i].End() > addr })
	if i < len(m.regions) {
		if r := &m.regions[i]; addr >= r.Guest && n <= r.End()-addr {
			off := addr - r.Guest
			if a := m.absent.Load(); a != nil && n > 0 {
				if err := a.await(i, off, n); err != nil {
					return nil, fmt.Errorf("%d bytes at %#x: %w", n, addr, err)
				}
			}
			return r.Host[off : off+n : off+n], nil
		}
	}
	for i := range m.lent {
		if r := &m.lent[i]; addr >= r.Guest && addr < r.End() && n <= r.End()-addr {
			off := addr - r.Guest
			return r.Host[off : off+n : off+n], nil
		}
	}
	return nil, fmt.Errorf("%d bytes at %#x: %w", n, addr, ErrOutside)
}

// Read copies from memory.
func (m *Memory) Read(p []byte, addr uint64) error {
	b, err := m.Slice(addr, uint64(len(p)))
	copy(p, b)
	return err
}

// Write copies to memory.
func (m *Memory) Write(p []byte, addr uint64) error {
	b, err := m.Slice(addr, uint64(len(p)))
	copy(b, p)
	m.Wrote(b)
	return err
}

// Uint16 reads a little-endian number.
func (m *Memory) Uint16(addr uint64) (uint16, error) {
	b, err := m.Slice(addr, 2)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint16(b), nil
}
