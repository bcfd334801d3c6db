package virtiotest

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cleave-project/cleave/vmm/virtio"
)

// Flags of a descriptor (2.7.5).
const (
	flagNext     = 1
	flagWrite    = 2
	flagIndirect = 4
)

// Queue is the driver's side of a split virtqueue.
type Queue struct {
	g          *Guest
	n          int
	size       uint16
	eventIndex bool
	// Indirect has each request in a table of its own (2.7.5.3).
	Indirect bool

	desc, avail, used []byte

	mu       sync.Mutex
	free     []uint16 // descriptors
	room     *sync.Cond
	added    uint16
	kicked   uint16 // added at the last Kick
	seen     uint16 // of the used ring
	inFlight map[uint16]*Request
}

// Request is one that was made of a device.
type Request struct {
	// Readable and Writable are its parts, in the guest's memory.
	Readable, Writable [][]byte
	// Written is how much the device says to have written, once it is done.
	Written uint32

	parts []part
	table []byte // an indirect one, at
	at    uint64
	head  uint16
	descs []uint16
	done  chan struct{}
}

type part struct {
	at    uint64
	b     []byte
	write bool
}

func (g *Guest) queue(n int, size uint16, features uint64) *Queue {
	g.t.Helper()
	q := &Queue{g: g, n: n, size: size, eventIndex: features&virtio.FeatureEventIndex != 0, inFlight: map[uint16]*Request{}}
	q.room = sync.NewCond(&q.mu)
	for i := range size {
		q.free = append(q.free, i)
	}
	var at [3]uint64
	at[0], q.desc = g.Alloc(16 * int(size))
	at[1], q.avail = g.Alloc(6 + 2*int(size))
	at[2], q.used = g.Alloc(6 + 8*int(size))
	clear(q.desc)
	clear(q.avail)
	clear(q.used)
	g.write(regQueueSelect, 2, uint64(n))
	g.write(regQueueSize, 2, uint64(size))
	g.write(regQueueVector, 2, uint64(n+1))
	for i, reg := range []uint64{regQueueDesc, regQueueDriver, regQueueDevice} {
		g.write(reg, 8, at[i])
	}
	g.write(regQueueEnable, 2, 1)
	return q
}

// index is the index of a ring, which both sides may be using.
func index(ring []byte) *uint32 {
	return (*uint32)(unsafe.Pointer(unsafe.SliceData(ring)))
}

func load(ring []byte) uint16 { return uint16(atomic.LoadUint32(index(ring)) >> 16) }

// store is for a ring that only we write; its flags are 0.
func store(ring []byte, v uint16) { atomic.StoreUint32(index(ring), uint32(v)<<16) }

// Make prepares a request: parts that the device reads, and the sizes of
// those that it writes.
func (q *Queue) Make(readable [][]byte, writable ...int) *Request {
	q.g.t.Helper()
	r := &Request{}
	for _, b := range readable {
		at, p := q.g.Alloc(len(b))
		copy(p, b)
		r.Readable = append(r.Readable, p)
		r.parts = append(r.parts, part{at, p, false})
	}
	for _, n := range writable {
		at, p := q.g.Alloc(n)
		r.Writable = append(r.Writable, p)
		r.parts = append(r.parts, part{at, p, true})
	}
	if q.Indirect {
		r.at, r.table = q.g.Alloc(16 * len(r.parts))
	}
	return r
}

// Do makes a request, notifies the device, and waits until it is done.
func (q *Queue) Do(readable [][]byte, writable ...int) *Request {
	q.g.t.Helper()
	r := q.Make(readable, writable...)
	q.Add(r)
	q.Kick()
	q.Wait(r)
	return r
}

// Add makes a request available; it waits for room if there is none. The
// request may have been done before.
func (q *Queue) Add(r *Request) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := len(r.parts)
	if r.table != nil {
		n = 1
	}
	for len(q.free) < n {
		q.room.Wait()
	}
	r.descs = append(r.descs[:0], q.free[len(q.free)-n:]...)
	q.free = q.free[:len(q.free)-n]
	r.head = r.descs[0]
	if r.table != nil {
		for i, p := range r.parts {
			write(r.table[16*i:], p, uint16(i+1), i+1 < len(r.parts))
		}
		d := q.desc[16*int(r.head):]
		write(d, part{r.at, r.table, false}, 0, false)
		binary.LittleEndian.PutUint16(d[12:], flagIndirect)
	} else {
		for i, p := range r.parts {
			next, more := uint16(0), i+1 < n
			if more {
				next = r.descs[i+1]
			}
			write(q.desc[16*int(r.descs[i]):], p, next, more)
		}
	}
	r.done = make(chan struct{})
	q.inFlight[r.head] = r
	q.offer(r.head)
}

func write(d []byte, p part, next uint16, more bool) {
	le := binary.LittleEndian
	var flags uint16
	if p.write {
		flags |= flagWrite
	}
	if more {
		flags |= flagNext
	}
	le.PutUint64(d, p.at)
	le.PutUint32(d[8:], uint32(len(p.b)))
	le.PutUint16(d[12:], flags)
	le.PutUint16(d[14:], next)
}

func (q *Queue) offer(head uint16) {
	binary.LittleEndian.PutUint16(q.avail[4+2*int(q.added%q.size):], head)
	q.added++
	store(q.avail, q.added)
}

// Raw makes descriptors available as they are, from 0 on: a hostile guest's.
func (q *Queue) Raw(descriptors []byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	copy(q.desc, descriptors)
	q.offer(0)
}

// Kick notifies the device, if it wants to be.
func (q *Queue) Kick() {
	q.mu.Lock()
	since, added := q.kicked, q.added
	q.kicked = added
	q.mu.Unlock()
	wanted := atomic.LoadUint32(index(q.used))&1 == 0
	if q.eventIndex { // 2.7.10.1
		event := uint16(atomic.LoadUint32(index(q.used[4+8*int(q.size):])))
		wanted = added-event-1 < added-since
	}
	if wanted {
		q.g.Transport().WriteBAR(0, virtio.Notify(q.n), []byte{byte(q.n), 0})
	}
}

// Wait returns when a request is done; what the device wrote is its Writable.
func (q *Queue) Wait(r *Request) {
	q.g.t.Helper()
	for {
		q.Reap()
		if virtio.Closed(r.done) {
			return
		}
		select {
		case <-q.g.vectors[q.n+1]:
		case <-r.done: // another who waits has reaped it
		case <-time.After(patience):
			q.g.t.Fatalf("queue %d: a request isn't done after %v, status %#x", q.n, patience, q.g.Status())
		}
	}
}

// Free gives a request's memory back.
func (q *Queue) Free(r *Request) {
	for _, p := range r.parts {
		q.g.Free(p.at, len(p.b))
	}
	if r.table != nil {
		q.g.Free(r.at, len(r.table))
	}
}

// Reap takes what the device has given back, and returns how many that were.
func (q *Queue) Reap() int {
	q.g.t.Helper()
	q.mu.Lock()
	defer q.mu.Unlock()
	n := 0
	for {
		for ; q.seen != load(q.used); n++ {
			q.reap()
		}
		if !q.eventIndex {
			return n
		}
		// Tell us of the next (2.7.7.1); then look once more.
		word := q.avail[4+2*int(q.size):]
		if binary.LittleEndian.Uint16(word) == q.seen {
			return n
		}
		atomic.StoreUint32(index(word), uint32(q.seen))
	}
}

func (q *Queue) reap() {
	e := q.used[4+8*int(q.seen%q.size):]
	head, written := binary.LittleEndian.Uint32(e), binary.LittleEndian.Uint32(e[4:])
	r := q.inFlight[uint16(head)]
	if r == nil || head > 0xffff {
		q.g.t.Errorf("queue %d: request %d was given back, which wasn't made", q.n, head)
		q.seen++
		return
	}
	if room := uint32(virtio.Length(r.Writable)); written > room {
		q.g.t.Errorf("queue %d: %d bytes were written where there is room for %d", q.n, written, room)
	}
	r.Written = written
	delete(q.inFlight, uint16(head))
	q.free = append(q.free, r.descs...)
	q.seen++
	q.room.Broadcast()
	close(r.done)
}

// InFlight is how many requests are with the device.
func (q *Queue) InFlight() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.inFlight)
}
