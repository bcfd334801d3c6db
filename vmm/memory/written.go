package memory

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// KVM knows which pages a guest has written. Which the monitor has, by a
// device's hand, is noted here, a bit for each page, while somebody wants to
// know.

// Track begins to note what is written, with nothing, or ends that.
func (m *Memory) Track(on bool) {
	if !on {
		m.written.Store(nil)
		return
	}
	maps := m.bitmaps()
	m.written.Store(&maps)
}

// Wrote notes that a piece of memory was written, as Slice returned it or a
// part of that. All who write to one say so afterwards.
func (m *Memory) Wrote(b []byte) {
	maps := m.written.Load()
	if maps == nil || len(b) == 0 {
		return
	}
	at := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
	for i, r := range m.regions {
		from := uintptr(unsafe.Pointer(unsafe.SliceData(r.Host)))
		if at < from || at >= from+uintptr(len(r.Host)) {
			continue
		}
		first, last := uint64(at-from)/PageSize, (uint64(at-from)+uint64(len(b))-1)/PageSize
		for p := first; p <= last; p++ {
			if word, bit := &(*maps)[i][p/64], uint64(1)<<(p%64); atomic.LoadUint64(word)&bit == 0 {
				atomic.OrUint64(word, bit)
			}
		}
	}
}

// TakeWritten adds what was noted for a region to a bitmap, and begins anew.
func (m *Memory) TakeWritten(region int, to []uint64) {
	maps := m.written.Load()
	if maps == nil {
		return
	}
	for i := range (*maps)[region] {
		to[i] |= atomic.SwapUint64(&(*maps)[region][i], 0)
	}
}

// Discard gives a piece of memory back to the host: it reads as zeroes, and
// takes none of the host's until it is written. What isn't whole pages of it
// stays.
func (m *Memory) Discard(addr, size uint64) error {
	from := (addr + PageSize - 1) &^ (PageSize - 1)
	to := (addr + size) &^ (PageSize - 1)
	if from < addr || addr+size < addr || from >= to {
		return nil
	}
	b, err := m.Slice(from, to-from)
	if err != nil {
		return err
	}
	defer m.Wrote(b)
	if m.absent.Load() != nil {
		clear(b) // so that nobody waits for it anew
		return nil
	}
	if m.private {
		// Without its own copy a page would read as the file has it.
		_, err = unix.MmapPtr(-1, 0, unsafe.Pointer(unsafe.SliceData(b)), uintptr(len(b)),
			unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED|unix.MAP_NORESERVE)
	} else {
		// From the file, and so from all who map it.
		err = unix.Madvise(b, unix.MADV_REMOVE)
	}
	if err != nil {
		return fmt.Errorf("give %d bytes of the guest's memory back: %w", len(b), err)
	}
	return nil
}

// Private tells whether the memory is a copy of its file, made page by page.
func (m *Memory) Private() bool { return m.private }
