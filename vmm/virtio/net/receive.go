package net

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/vmm/virtio"
)

// receiver takes packets from the tap to the guest. It holds requests of the
// guest for room, in their order, as many as the largest packet may need.
type receiver struct {
	port *port
	vectors

	mergeable bool
	room      []*virtio.Chain // held
	bytes     int             // of room
	spare     []*virtio.Chain

	// buffer is for packets where there is less room than one may need;
	// waiting is what of it is a packet that has no room yet.
	buffer  []byte
	waiting []byte
}

func (r *receiver) init(p *port) {
	r.port = p
	r.vectors.init(unix.SYS_READV)
}

// run receives until it is told to stop.
func (r *receiver) run(a virtio.Activation, stopping <-chan struct{}) error {
	n := 2 * r.port.n
	q := a.Queues[n]
	r.mergeable = a.Features&FeatureMergeable != 0
	defer r.putBack(q)
	q.Notify(false)
	for !virtio.Closed(stopping) {
		if err := r.hold(q, maxPacket); err != nil {
			return err
		}
		if !r.enough() {
			if err := r.awaitRoom(a, stopping); err != nil || virtio.Closed(stopping) {
				return err
			}
			continue
		}
		size, err := r.receive(q)
		if err != nil || size < 0 {
			return err
		}
		if size == 0 {
			continue
		}
		if q.Interrupt() {
			a.Interrupt(n)
		}
		if !r.port.device.options.Receive.Take(stopping, size) {
			return nil
		}
	}
	return nil
}

// hold takes requests until they have room for n bytes, or there are none.
func (r *receiver) hold(q *virtio.Queue, n int) error {
	for r.bytes < n && (r.mergeable || len(r.room) == 0) {
		c := new(virtio.Chain)
		if k := len(r.spare); k > 0 {
			c, r.spare = r.spare[k-1], r.spare[:k-1]
		}
		ok, err := q.Take(c)
		if err != nil || !ok {
			r.spare = append(r.spare, c)
			return err
		}
		r.room = append(r.room, c)
		r.bytes += virtio.Length(c.Writable)
	}
	return nil
}

// enough tells whether there is room for what waits, or for some packet.
func (r *receiver) enough() bool {
	if !r.mergeable {
		return len(r.room) > 0 // for what is too large there will be none
	}
	return r.bytes >= max(len(r.waiting), 1)
}

// putBack leaves the guest's requests to whoever goes on.
func (r *receiver) putBack(q *virtio.Queue) {
	for range r.room {
		q.PutBack()
	}
	r.spare = append(r.spare, r.room...)
	r.room, r.bytes = r.room[:0], 0
}

// awaitRoom returns when the guest has offered more.
func (r *receiver) awaitRoom(a virtio.Activation, stopping <-chan struct{}) error {
	n := 2 * r.port.n
	q, count := a.Queues[n], make([]byte, 8)
	q.Notify(true)
	defer q.Notify(false)
	if q.Pending() || virtio.Closed(stopping) {
		return nil
	}
	if _, err := a.Kicks[n].Read(count); err != nil && !stopped(err) {
		return err
	}
	return nil
}

// receive gets a packet to the guest and returns its size: 0 if it was
// dropped, or has to wait for room; less than 0 if the tap has ended or it was
// told to stop.
func (r *receiver) receive(q *virtio.Queue) (int, error) {
	if len(r.waiting) == 0 {
		direct := r.gather()
		size := r.read()
		if size <= 0 {
			return size, nil
		}
		if direct {
			r.deliver(q, size)
			return size - headerSize, nil
		}
		r.waiting = r.buffer[:size]
	}
	size := len(r.waiting)
	if r.bytes < size {
		if !r.mergeable { // and will never be
			r.waiting = r.waiting[:0]
			r.port.received.dropped.Add(1)
		}
		return 0, nil
	}
	rest := r.waiting
	for _, c := range r.room {
		for _, p := range c.Writable {
			rest = rest[copy(p, rest):]
		}
	}
	r.waiting = r.waiting[:0]
	r.deliver(q, size)
	return size - headerSize, nil
}

// gather says where a packet goes: into the guest's memory, which it returns
// true for, or into the buffer if that may not do.
func (r *receiver) gather() bool {
	left := maxPacket
	for _, c := range r.room {
		left -= r.add(c.Writable, left)
	}
	if left == 0 {
		return true
	}
	if r.buffer == nil {
		r.buffer = make([]byte, maxPacket)
	}
	r.reset()
	r.iovecs = append(r.iovecs, unix.Iovec{Base: &r.buffer[0], Len: maxPacket})
	return false
}

// read reads a packet to where it goes. The size is less than 0 if there will
// be none any more, and 0 if it is to be dropped.
func (r *receiver) read() (size int) {
	defer r.reset()
	if err := r.port.tap.conn.Read(r.once); err != nil || r.errno != 0 {
		return -1 // stopped, closed, or its interface is gone
	}
	if r.n < headerSize+minPacket || r.port.down.Load() {
		r.port.received.dropped.Add(1)
		return 0
	}
	return r.n
}

// deliver gives a packet of size bytes with its header, that is in the room
// that is held, to the guest: all at once, since the driver of a mergeable
// packet wants to find all of its buffers (5.1.6.4).
func (r *receiver) deliver(q *virtio.Queue, size int) {
	used, left := 0, size
	for _, c := range r.room {
		if left == 0 {
			break
		}
		left -= min(left, virtio.Length(c.Writable))
		used++
	}
	var number [2]byte
	binary.LittleEndian.PutUint16(number[:], uint16(used))
	putAt(r.room, headerSize-2, number[:])
	left = size
	for _, c := range r.room[:used] {
		n := min(left, virtio.Length(c.Writable))
		q.Fill(c, uint32(n))
		left -= n
		r.bytes -= virtio.Length(c.Writable)
	}
	q.Publish()
	r.spare = append(r.spare, r.room[:used]...)
	r.room = r.room[:copy(r.room, r.room[used:])]
	r.port.received.count(size - headerSize)
}

// putAt writes b at an offset of the room.
func putAt(room []*virtio.Chain, at int, b []byte) {
	for _, c := range room {
		for _, p := range c.Writable {
			if at >= len(p) {
				at -= len(p)
				continue
			}
			n := copy(p[at:], b)
			if b, at = b[n:], 0; len(b) == 0 {
				return
			}
		}
	}
}
