package balloon

import (
	"encoding/binary"
	"fmt"

	"github.com/cleave-project/cleave/vmm/memory"
	"github.com/cleave-project/cleave/vmm/virtio"
)

// run is pages that follow each other: discarding is dear for each call.
type run struct{ first, n uint64 }

// add takes one more page, on either side, if it fits.
func (r *run) add(page uint64) bool {
	switch {
	case r.n == 0:
		*r = run{page, 1}
	case page == r.first+r.n:
		r.n++
	case page+1 == r.first:
		r.first, r.n = page, r.n+1
	default:
		return false
	}
	return true
}

func (d *Device) discard(m *memory.Memory, r run, counter *uint64) error {
	if r.n == 0 {
		return nil
	}
	if err := m.Discard(r.first*pageSize, r.n*pageSize); err != nil {
		return fmt.Errorf("%w: pages from %#x on: %v", virtio.ErrQueue, r.first*pageSize, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	*counter += r.n * pageSize
	return nil
}

// inflate takes pages, whose numbers are a list.
func (d *Device) inflate(m *memory.Memory, c *virtio.Chain) error {
	var r run
	list := c.Readable
	for {
		var b [4]byte
		var ok bool
		if list, ok = virtio.Pull(list, b[:]); !ok {
			return d.discard(m, r, &d.metrics.Inflated)
		}
		if page := uint64(binary.LittleEndian.Uint32(b[:])); !r.add(page) {
			if err := d.discard(m, r, &d.metrics.Inflated); err != nil {
				return err
			}
			r = run{page, 1}
		}
	}
}

// report takes pages that are free: they are the request's pieces.
func (d *Device) report(m *memory.Memory, c *virtio.Chain, keep bool) error {
	if keep {
		return nil
	}
	for _, p := range c.Writable {
		addr, ok := m.Address(p)
		if !ok || len(p) == 0 {
			continue
		}
		if addr%pageSize != 0 || len(p)%pageSize != 0 {
			return fmt.Errorf("%w: %d bytes at %#x are reported, no whole pages", virtio.ErrQueue, len(p), addr)
		}
		if err := d.discard(m, run{addr / pageSize, uint64(len(p)) / pageSize}, &d.metrics.Reported); err != nil {
			return err
		}
	}
	return nil
}

// statSize is that of a number with its tag (5.5.6.3).
const statSize = 10

// takeStats takes the driver's buffer, if it has offered one.
func (d *Device) takeStats() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.held != nil {
		return nil // there is at most one; another waits
	}
	c := new(virtio.Chain)
	q := d.active.Queues[d.heldQ]
	ok, err := q.TakeRoom(c)
	if err != nil || !ok {
		return err
	}
	q.Notify(true) // of the next, which comes when this one was given back
	d.held = c
	d.stats = parseStats(c.Readable)
	close(d.fresh)
	d.fresh = make(chan struct{})
	return nil
}

// maxStats bounds how many numbers are looked at.
const maxStats = 64

func parseStats(data [][]byte) (s Stats) {
	for range maxStats {
		var b [statSize]byte
		var ok bool
		if data, ok = virtio.Pull(data, b[:]); !ok {
			break
		}
		to := [...]*uint64{
			&s.SwappedIn, &s.SwappedOut, &s.MajorFaults, &s.MinorFaults, &s.Free, &s.Total,
			&s.Available, &s.Caches, &s.HugeAllocated, &s.HugeRefused,
		}
		if tag := int(binary.LittleEndian.Uint16(b[:])); tag < len(to) {
			*to[tag] = binary.LittleEndian.Uint64(b[2:])
		}
	}
	return s
}
