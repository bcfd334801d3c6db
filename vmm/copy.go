package vmm

import (
	"bytes"
	"fmt"
	"math/bits"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/vmm/kvm"
	"github.com/cleave-project/cleave/vmm/memory"
)

// pages are a bitmap for each region of memory.
type pages [][]uint64

func (m *Machine) newPages() pages {
	var p pages
	for _, r := range m.memory.Regions() {
		p = append(p, make([]uint64, (len(r.Host)/memory.PageSize+63)/64))
	}
	return p
}

// add adds another's pages.
func (p pages) add(o pages) {
	for i := range p {
		for j := range p[i] {
			p[i][j] |= o[i][j]
		}
	}
}

// run is a number of pages in the file of memory.
type run struct{ First, Count uint64 }

// runs lists what is set, in the order of the file.
func (m *Machine) runs(p pages) []run {
	var out []run
	for i, r := range m.memory.Regions() {
		base := uint64(r.Offset) / memory.PageSize
		for j, word := range p[i] {
			for ; word != 0; word &= word - 1 {
				n := base + uint64(j)*64 + uint64(bits.TrailingZeros64(word))
				if k := len(out) - 1; k >= 0 && out[k].First+out[k].Count == n {
					out[k].Count++
				} else {
					out = append(out, run{n, 1})
				}
			}
		}
	}
	return out
}

// logDirty has it noted which pages are written, by guest and devices.
func (m *Machine) logDirty(on bool) error {
	flags := uint32(0)
	if on {
		flags = kvm.MemLogDirty
	}
	m.memory.Track(on)
	if m.rings != nil {
		if err := m.rings.begin(on); err != nil {
			return err
		}
	}
	for i, r := range m.memory.Regions() {
		if err := m.vm.SetMemory(uint32(i), flags, r.Guest, r.Host); err != nil {
			return err
		}
	}
	return nil
}

// takeDirty are the pages that were written since the last call.
func (m *Machine) takeDirty() (pages, error) {
	p := m.newPages()
	if m.rings != nil {
		if err := m.rings.take(p); err != nil {
			return nil, err
		}
	}
	for i := range p {
		if m.rings == nil {
			if err := m.vm.DirtyLog(uint32(i), p[i]); err != nil {
				return nil, err
			}
		}
		m.memory.TakeWritten(i, p[i])
	}
	return p, nil
}

// copyAll writes all of memory to an empty file, in which zeroes are holes.
func (m *Machine) copyAll(to *os.File) error {
	for _, r := range m.memory.Regions() {
		for off := uint64(0); off < uint64(len(r.Host)); {
			from, end, err := m.data(&r, off)
			if err != nil {
				return err
			}
			if err := writeSparse(to, r.Host[from:end], r.Offset+int64(from)); err != nil {
				return err
			}
			off = end
		}
	}
	return to.Truncate(int64(m.memory.FileSize()))
}

// data finds what of a region, from an offset on, may be other than zero.
func (m *Machine) data(r *memory.Region, off uint64) (from, end uint64, err error) {
	size := uint64(len(r.Host))
	if m.memory.Private() {
		return off, size, nil // of copied pages the file knows nothing
	}
	fd := int(m.memory.File().Fd())
	at, err := unix.Seek(fd, r.Offset+int64(off), unix.SEEK_DATA)
	if err == unix.ENXIO {
		return size, size, nil
	}
	if err != nil {
		return 0, 0, fmt.Errorf("find out what of the guest's memory is used: %w", err)
	}
	hole, err := unix.Seek(fd, at, unix.SEEK_HOLE)
	if err != nil {
		return 0, 0, fmt.Errorf("find out what of the guest's memory is used: %w", err)
	}
	return min(uint64(at-r.Offset), size), min(uint64(hole-r.Offset), size), nil
}

var zeroPage [memory.PageSize]byte

// mostAtOnce bounds a write, during which no other is found out about.
const mostAtOnce = 4 << 20

// writeSparse writes the pages of b that are not zero.
func writeSparse(to *os.File, b []byte, at int64) error {
	const page = memory.PageSize
	for len(b) > 0 {
		n := 0
		for n < len(b) && n < mostAtOnce && !bytes.Equal(b[n:n+page], zeroPage[:]) {
			n += page
		}
		if n == 0 {
			b, at = b[page:], at+page
			continue
		}
		if _, err := to.WriteAt(b[:n], at); err != nil {
			return err
		}
		b, at = b[n:], at+int64(n)
	}
	return nil
}

// copyRuns writes pages as they are.
func (m *Machine) copyRuns(to *os.File, list []run) error {
	for _, r := range list {
		for first, left := r.First, r.Count; left > 0; {
			b := m.inFile(first)
			n := min(left*memory.PageSize, uint64(len(b)), mostAtOnce)
			if _, err := to.WriteAt(b[:n], int64(first)*memory.PageSize); err != nil {
				return err
			}
			first, left = first+n/memory.PageSize, left-n/memory.PageSize
		}
	}
	return nil
}

// inFile is the memory from a page of the file to the end of its region.
func (m *Machine) inFile(page uint64) []byte {
	off := int64(page) * memory.PageSize
	for _, r := range m.memory.Regions() {
		if off >= r.Offset && off < r.Offset+int64(len(r.Host)) {
			return r.Host[off-r.Offset:]
		}
	}
	return nil
}
