// Package virtio is the devices' side of virtio 1.2 (OASIS Virtual I/O Device,
// version 1.2): queues in the guest's memory, which the guest may fill with
// anything.
package virtio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/cleave-project/cleave/vmm/memory"
)

// Flags of a descriptor (2.7.5).
const (
	descNext     = 1
	descWrite    = 2
	descIndirect = 4
	descSize     = 16
)

// Flags of the rings (2.7.6, 2.7.8).
const (
	availNoInterrupt = 1
	usedNoNotify     = 1
)

// MaxQueue is the largest queue that a guest may ask for (2.7).
const MaxQueue = 32768

// maxChain bounds a chain beside the queue's own size: what an indirect table
// may hold, and what iovecs a system call takes (UIO_MAXIOV).
const maxChain = 1024

// Config is where a guest has put a split virtqueue.
type Config struct {
	Size              uint16 // a power of two
	Desc, Avail, Used uint64 // physical addresses
	// EventIndex says that VIRTIO_F_EVENT_IDX was negotiated.
	EventIndex bool
}

// Queue is a split virtqueue in use by a device, from one goroutine.
type Queue struct {
	mem  *memory.Memory
	conf Config

	desc, avail, used []byte // of the guest's memory

	next     uint16 // index into the available ring of what comes next
	done     uint16 // index into the used ring of what was given back last
	signaled uint16 // done when the guest was interrupted last
	told     bool   // signaled has a meaning
}

// ErrQueue is the fault of a guest that breaks the rules of queues. A device
// that meets it stops, and says so in its status (2.1.2).
var ErrQueue = errors.New("broken virtqueue")

func broken(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrQueue, fmt.Sprintf(format, args...))
}

// NewQueue checks a configuration and begins with an empty queue.
func NewQueue(m *memory.Memory, c Config) (*Queue, error) {
	if c.Size == 0 || c.Size > MaxQueue || c.Size&(c.Size-1) != 0 {
		return nil, broken("size %d is no power of two", c.Size)
	}
	q := &Queue{mem: m, conf: c}
	n := uint64(c.Size)
	for _, part := range []struct {
		name  string
		to    *[]byte
		at    uint64
		size  uint64
		align uint64
	}{
		{"descriptors", &q.desc, c.Desc, descSize * n, 16},
		{"available ring", &q.avail, c.Avail, 6 + 2*n, 2},
		{"used ring", &q.used, c.Used, 6 + 8*n, 4},
	} {
		if part.at%part.align != 0 {
			return nil, broken("%s at %#x", part.name, part.at)
		}
		b, err := m.Slice(part.at, part.size)
		if err != nil {
			return nil, broken("%s: %v", part.name, err)
		}
		*part.to = b
	}
	return q, nil
}

// load16 reads a number that the guest may be writing, once and after what it
// wrote before (x86 keeps the order of loads; the runtime and the compiler
// must keep it too). b is two bytes within four that are aligned.
func load16(b []byte) uint16 {
	p := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
	word := atomic.LoadUint32((*uint32)(unsafe.Add(unsafe.Pointer(unsafe.SliceData(b)), -int(p&2))))
	return uint16(word >> (8 * (p & 2)))
}

// store16 writes a number after all that was written before. Only we write
// to the used ring, so the other half of the word is ours too.
func store16(b []byte, v uint16) {
	p := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
	word := (*uint32)(unsafe.Add(unsafe.Pointer(unsafe.SliceData(b)), -int(p&2)))
	shift := 8 * (p & 2)
	atomic.StoreUint32(word, atomic.LoadUint32(word)&^(0xffff<<shift)|uint32(v)<<shift)
}

// Chain is a request of the guest: what the device may read, then what it may
// write, as pieces of the guest's memory.
type Chain struct {
	head     uint16
	Readable [][]byte
	Writable [][]byte
	// writable is Writable, whatever a device makes of that.
	writable [][]byte
}

// Next returns the next request, nil if there is none.
func (q *Queue) Next() (*Chain, error) {
	c := new(Chain)
	if ok, err := q.Take(c); !ok || err != nil {
		return nil, err
	}
	return c, nil
}

// Take is Next into a chain that was used before, or a new one: it allocates
// nothing once c has held as many pieces. ok says that there was a request.
func (q *Queue) Take(c *Chain) (ok bool, err error) {
	available := load16(q.avail[2:])
	pending := available - q.next
	if pending == 0 {
		return false, nil
	}
	if pending > q.conf.Size {
		return false, broken("%d requests in a queue of %d", pending, q.conf.Size)
	}
	head := binary.LittleEndian.Uint16(q.avail[4+2*int(q.next&(q.conf.Size-1)):])
	if err := q.follow(c, head); err != nil {
		return false, err
	}
	q.next++
	return true, nil
}

// follow collects the descriptors from head on. The bound on their number
// ends those that lead in a circle.
func (q *Queue) follow(c *Chain, head uint16) error {
	c.head, c.Readable, c.Writable, c.writable = head, c.Readable[:0], c.Writable[:0], c.writable[:0]
	table, indirect := q.desc, false
	limit := min(int(q.conf.Size), maxChain)
	for i, n := head, 0; ; n++ {
		if n == limit {
			return broken("a chain of more than %d descriptors", limit)
		}
		off := int(i) * descSize
		if off+descSize > len(table) {
			return broken("descriptor %d of %d", i, len(table)/descSize)
		}
		// A copy: the guest may change its own while we look at it.
		d := [descSize]byte(table[off:])
		addr, size := binary.LittleEndian.Uint64(d[:]), binary.LittleEndian.Uint32(d[8:])
		flags, next := binary.LittleEndian.Uint16(d[12:]), binary.LittleEndian.Uint16(d[14:])
		if flags&descIndirect != 0 {
			if indirect || flags&descNext != 0 || n > 0 {
				return broken("an indirect table within a chain")
			}
			if size == 0 || size%descSize != 0 || size > maxChain*descSize {
				return broken("an indirect table of %d bytes", size)
			}
			t, err := q.mem.Slice(addr, uint64(size))
			if err != nil {
				return broken("indirect table: %v", err)
			}
			table, indirect, i = t, true, 0
			limit = len(t) / descSize
			n = -1
			continue
		}
		if err := c.add(q.mem, addr, size, flags&descWrite != 0); err != nil {
			return err
		}
		if flags&descNext == 0 {
			return nil
		}
		i = next
	}
}

func (c *Chain) add(m *memory.Memory, addr uint64, size uint32, write bool) error {
	b, err := m.Slice(addr, uint64(size))
	switch {
	case err != nil:
		return broken("descriptor: %v", err)
	case write:
		c.Writable, c.writable = append(c.Writable, b), append(c.writable, b)
	case len(c.Writable) > 0:
		return broken("a readable descriptor behind a writable one") // 2.7.4.2
	default:
		c.Readable = append(c.Readable, b)
	}
	return nil
}

// TakeRoom is Take from a queue that is watched by OnKick.
func (q *Queue) TakeRoom(c *Chain) (ok bool, err error) {
	if ok, err = q.Take(c); ok || err != nil {
		return ok, err
	}
	q.Notify(true)
	return q.Take(c)
}

// PutBack makes the request that Next returned last the next again: nothing
// was done with it.
func (q *Queue) PutBack() { q.next-- }

// Done gives a request back, of which the device has written n bytes.
func (q *Queue) Done(c *Chain, n uint32) {
	q.Fill(c, n)
	q.Publish()
}

// Fill is Done that the driver sees with the next Publish: for what must come
// to it at once.
func (q *Queue) Fill(c *Chain, n uint32) {
	e := q.used[4+8*int(q.done&(q.conf.Size-1)):]
	binary.LittleEndian.PutUint32(e, uint32(c.head))
	binary.LittleEndian.PutUint32(e[4:], n)
	q.done++
	for _, b := range c.writable {
		q.mem.Wrote(b)
	}
}

// Publish lets the driver see all that was filled.
func (q *Queue) Publish() {
	store16(q.used[2:], q.done)
	q.mem.Wrote(q.used)
}

// Interrupt tells whether the guest wants to be told of what was given back
// since the last call (2.7.7, 2.7.10).
func (q *Queue) Interrupt() bool {
	if !q.conf.EventIndex {
		return load16(q.avail)&availNoInterrupt == 0
	}
	event := load16(q.avail[4+2*int(q.conf.Size):]) // used_event
	last, told := q.signaled, q.told
	q.signaled, q.told = q.done, true
	return !told || q.done-event-1 < q.done-last
}

// Notify says whether the guest shall tell of new requests. After turning it
// on, a caller looks once more: what came in between was not told.
func (q *Queue) Notify(on bool) {
	defer q.mem.Wrote(q.used)
	switch {
	case q.conf.EventIndex && on:
		store16(q.used[4+8*int(q.conf.Size):], q.next)
	case q.conf.EventIndex:
		// Left where it is: the guest tells once more at most, and not of each
		// request that it adds while others are taken.
	case on:
		store16(q.used, 0)
	default:
		store16(q.used, usedNoNotify)
	}
}

// Pending tells whether there are requests.
func (q *Queue) Pending() bool { return load16(q.avail[2:]) != q.next }

// State is what is saved of a queue in use. Version 1.
type State struct {
	Config
	Next, Done, Signaled uint16
	Told                 bool
}

// Save returns the queue's state.
func (q *Queue) Save() State { return State{q.conf, q.next, q.done, q.signaled, q.told} }

// RestoreQueue goes on where a queue was.
func RestoreQueue(m *memory.Memory, s State) (*Queue, error) {
	q, err := NewQueue(m, s.Config)
	if err != nil {
		return nil, err
	}
	q.next, q.done, q.signaled, q.told = s.Next, s.Done, s.Signaled, s.Told
	return q, nil
}
