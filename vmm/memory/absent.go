package memory

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// A guest may run before all of its memory is there. Its processors, and the
// kernel in their name, wait in the kernel for a page that is not (Faults).
// What this process itself does may not wait so: a goroutine that does would
// keep Go's runtime from stopping all others, for which the page may have to
// come. So Slice has it wait, and nobody gets hold of what isn't there.

// ErrAbandoned is that memory will never come.
var ErrAbandoned = errors.New("the guest's memory doesn't come any more")

// Absent is what of a memory is elsewhere.
type Absent struct {
	memory *Memory
	want   func(offset, n int64)

	mu      sync.Mutex
	came    sync.Cond
	faults  *Faults    // nil before Begin and after the end
	remote  [][]uint64 // by region, a bit for each page: what it has is elsewhere
	asked   [][]uint64 // of those
	here    [][]uint64 // is known to be there
	left    int64      // pages that are elsewhere
	err     error
	watched sync.WaitGroup
}

// NewAbsent begins with nothing that is elsewhere.
func (m *Memory) NewAbsent() *Absent {
	a := &Absent{memory: m, remote: m.bitmaps(), asked: m.bitmaps(), here: m.bitmaps()}
	a.came.L = &a.mu
	return a
}

// bitmaps have a bit for each page of each region.
func (m *Memory) bitmaps() (out [][]uint64) {
	for _, r := range m.regions {
		out = append(out, make([]uint64, (len(r.Host)/PageSize+63)/64))
	}
	return out
}

func has(bits []uint64, p uint64) bool { return bits[p/64]&(1<<(p%64)) != 0 }
func set(bits []uint64, p uint64)      { bits[p/64] |= 1 << (p % 64) }
func unset(bits []uint64, p uint64)    { bits[p/64] &^= 1 << (p % 64) }

// each calls f with the parts of regions, in whole pages, that a part of the
// memory's file is.
func (m *Memory) each(off, n int64, f func(region int, first, count uint64) error) error {
	if off < 0 || n <= 0 || off%PageSize != 0 || n%PageSize != 0 || off+n < off || off+n > int64(m.FileSize()) {
		return fmt.Errorf("%d bytes at %#x of the memory's file: %w", n, off, ErrOutside)
	}
	for i := range m.regions {
		r := &m.regions[i]
		from, to := max(off, r.Offset), min(off+n, r.Offset+int64(len(r.Host)))
		if from >= to {
			continue
		}
		if err := f(i, uint64(from-r.Offset)/PageSize, uint64(to-from)/PageSize); err != nil {
			return err
		}
	}
	return nil
}

// pages are those of a region.
func (m *Memory) pages(region int, first, count uint64) []byte {
	return m.regions[region].Host[first*PageSize : (first+count)*PageSize]
}

// Later says that what n bytes at an offset of the file have comes while the
// guest runs, whatever they have now. It is called before Begin.
func (a *Absent) Later(off, n int64) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.faults != nil {
		return errors.New("memory is to come later that the guest has already")
	}
	return a.memory.each(off, n, func(region int, first, count uint64) error {
		for p := first; p < first+count; p++ {
			if !has(a.remote[region], p) {
				set(a.remote[region], p)
				a.left++
			}
		}
		if err := unix.Madvise(a.memory.pages(region, first, count), unix.MADV_REMOVE); err != nil {
			return fmt.Errorf("make room for memory that comes later: %w", err)
		}
		return nil
	})
}

// Begin has all who need what is elsewhere wait for it. want is told what is
// needed, by bytes of the file, and lost, on a goroutine that Abandon waits for,
// that somebody waits for ever; neither must wait. device is an open
// FaultDevice.
func (a *Absent) Begin(device *os.File, want func(offset, n int64), lost func(error)) error {
	faults, err := NewFaults(device)
	if err != nil {
		return err
	}
	for _, r := range a.memory.regions {
		if err := faults.register(r.Host); err != nil {
			faults.Close()
			return fmt.Errorf("wait for %d bytes of memory: %w", len(r.Host), err)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.faults, a.want = faults, want
	a.memory.absent.Store(a)
	regions := a.memory.regions
	a.watched.Go(func() { a.watch(faults, regions, lost) })
	a.check()
	return nil
}

// watch answers for accesses that wait in the kernel.
func (a *Absent) watch(faults *Faults, regions []Region, lost func(error)) {
	for {
		addr, err := faults.next()
		if err != nil {
			return // it is closed
		}
		for i, r := range regions {
			if from := address(r.Host); addr >= from && addr < from+uint64(len(r.Host)) {
				a.mu.Lock()
				err := a.ask(i, (addr-from)/PageSize, 1)
				a.mu.Unlock()
				if err != nil && !errors.Is(err, ErrAbandoned) {
					lost(err)
				}
			}
		}
	}
}

// ask has pages come that are elsewhere, and makes the others be there.
func (a *Absent) ask(region int, first, count uint64) error {
	if a.faults == nil {
		return a.err
	}
	for p := first; p < first+count; p++ {
		switch {
		case has(a.here[region], p), has(a.asked[region], p):
		case has(a.remote[region], p):
			set(a.asked[region], p)
			a.want(a.memory.regions[region].Offset+int64(p*PageSize), PageSize)
		default:
			if err := a.place(region, p, 1, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// place puts pages where there are none, zeroes without content. What is there
// stays.
func (a *Absent) place(region int, first, count uint64, content []byte) error {
	to := a.memory.pages(region, first, count)
	var err error
	if content == nil {
		err = a.faults.zero(to)
	} else {
		err = a.faults.copy(to, content)
	}
	if errors.Is(err, unix.EEXIST) && count > 1 {
		for p := range count {
			var one []byte
			if content != nil {
				one = content[p*PageSize : (p+1)*PageSize]
			}
			if err := a.place(region, first+p, 1, one); err != nil {
				return err
			}
		}
		return nil
	}
	if errors.Is(err, unix.EEXIST) {
		err = a.faults.wake(to)
	}
	if err != nil {
		return fmt.Errorf("put a page of memory in its place: %w", err)
	}
	for p := first; p < first+count; p++ {
		set(a.here[region], p)
	}
	return nil
}

// need waits until pages are there.
func (a *Absent) need(region int, first, count uint64) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.ask(region, first, count); err != nil {
		return err
	}
	for p := first; p < first+count; p++ {
		for has(a.remote[region], p) {
			if a.err != nil {
				return a.err
			}
			a.came.Wait()
		}
	}
	return nil
}

// Came says what n bytes at an offset of the file have, zeroes without
// content: what isn't elsewhere any more stays as it is.
func (a *Absent) Came(off, n int64, content []byte) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	err := a.memory.each(off, n, func(region int, first, count uint64) error {
		at := a.memory.regions[region].Offset + int64(first*PageSize) - off
		for count > 0 {
			skip := run(a.remote[region], first, count, false)
			first, count, at = first+skip, count-skip, at+int64(skip*PageSize)
			n := run(a.remote[region], first, count, true)
			if n == 0 {
				continue
			}
			if a.faults == nil {
				return errors.Join(a.err, errors.New("memory comes that nobody waits for"))
			}
			var part []byte
			if content != nil {
				part = content[at : at+int64(n*PageSize)]
			}
			if err := a.place(region, first, n, part); err != nil {
				return err
			}
			for p := first; p < first+n; p++ {
				unset(a.remote[region], p)
			}
			a.left -= int64(n)
			first, count, at = first+n, count-n, at+int64(n*PageSize)
		}
		return nil
	})
	a.check()
	return err
}

// run is how many pages from the first on are so.
func run(bits []uint64, first, count uint64, so bool) (n uint64) {
	for n < count && has(bits, first+n) == so {
		n++
	}
	return n
}

// check ends the waiting when there is nothing to wait for.
func (a *Absent) check() {
	a.came.Broadcast()
	if a.left > 0 || a.faults == nil {
		return
	}
	// Nobody may touch memory without Slice's waiting while somebody could still
	// be waiting in the kernel: that comes last.
	for _, r := range a.memory.regions {
		_ = a.faults.unregister(r.Host) // its end does so too
	}
	_ = a.faults.Close()
	a.faults = nil
	a.memory.absent.Store(nil)
}

// Left is how many bytes are elsewhere.
func (a *Absent) Left() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.left * PageSize
}

// Missing calls f with what is elsewhere, by bytes of the file, and then wants
// anew what of it is needed.
func (a *Absent) Missing(f func(off, n int64) error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, r := range a.memory.regions {
		pages := uint64(len(r.Host)) / PageSize
		for p := uint64(0); p < pages; {
			p += run(a.remote[i], p, pages-p, false)
			n := run(a.remote[i], p, pages-p, true)
			if n == 0 {
				continue
			}
			if err := f(r.Offset+int64(p*PageSize), int64(n*PageSize)); err != nil {
				return err
			}
			p += n
		}
	}
	for i, r := range a.memory.regions {
		for p := range uint64(len(r.Host)) / PageSize {
			if has(a.remote[i], p) && has(a.asked[i], p) {
				a.want(r.Offset+int64(p*PageSize), PageSize)
			}
		}
	}
	return nil
}

// Abandon ends the waiting though memory is elsewhere. The guest's processors
// must not go on: they would find zeroes.
func (a *Absent) Abandon() {
	a.mu.Lock()
	if a.err == nil && a.left > 0 {
		a.err = ErrAbandoned
	}
	if a.faults != nil {
		_ = a.faults.Close()
		a.faults = nil
	}
	a.came.Broadcast()
	a.mu.Unlock()
	a.watched.Wait()
}

// Abandon gives up what is still to come.
func (m *Memory) Abandon() {
	if a := m.absent.Load(); a != nil {
		a.Abandon()
	}
}

// await has a slice of a region be there.
func (a *Absent) await(region int, off, n uint64) error {
	first := off / PageSize
	return a.need(region, first, (off+n+PageSize-1)/PageSize-first)
}
