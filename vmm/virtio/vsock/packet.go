package vsock

import (
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/cleave-project/cleave/vmm/virtio"
)

const headerSize = 44

// Operations (5.10.6).
const (
	opRequest       = 1
	opResponse      = 2
	opReset         = 3
	opShutdown      = 4
	opData          = 5
	opCreditUpdate  = 6
	opCreditRequest = 7

	typeStream = 1

	shutdownReceive = 1
	shutdownSend    = 2
	shutdownBoth    = shutdownReceive | shutdownSend
)

// header is that of a packet.
type header struct {
	srcCID, dstCID   uint64
	srcPort, dstPort uint32
	length           uint32
	kind, op         uint16
	flags            uint32
	bufAlloc, fwdCnt uint32
}

func parse(b *[headerSize]byte) header {
	le := binary.LittleEndian
	return header{
		srcCID: le.Uint64(b[0:]), dstCID: le.Uint64(b[8:]), srcPort: le.Uint32(b[16:]), dstPort: le.Uint32(b[20:]),
		length: le.Uint32(b[24:]), kind: le.Uint16(b[28:]), op: le.Uint16(b[30:]), flags: le.Uint32(b[32:]),
		bufAlloc: le.Uint32(b[36:]), fwdCnt: le.Uint32(b[40:]),
	}
}

func (h *header) bytes() (b [headerSize]byte) {
	le := binary.LittleEndian
	le.PutUint64(b[0:], h.srcCID)
	le.PutUint64(b[8:], h.dstCID)
	le.PutUint32(b[16:], h.srcPort)
	le.PutUint32(b[20:], h.dstPort)
	le.PutUint32(b[24:], h.length)
	le.PutUint16(b[28:], h.kind)
	le.PutUint16(b[30:], h.op)
	le.PutUint32(b[32:], h.flags)
	le.PutUint32(b[36:], h.bufAlloc)
	le.PutUint32(b[40:], h.fwdCnt)
	return b
}

// maxPending bounds the packets without data that wait for the guest's room:
// with more, what it sends isn't looked at until it takes some (5.10.6.1).
const maxPending = 1024

// rx is the way to the guest.
type rx struct {
	cid uint32

	mu         sync.Mutex
	changed    *sync.Cond // room, pending, or whether there is a queue
	activation virtio.Activation
	queue      *virtio.Queue // nil while paused
	pending    []header
	chain      virtio.Chain
}

func (r *rx) init(cid uint32) {
	r.cid = cid
	r.changed = sync.NewCond(&r.mu)
}

func (r *rx) activate(a virtio.Activation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.activation, r.queue = a, a.Queues[rxQueue]
	r.changed.Broadcast()
}

func (r *rx) pause() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.queue, r.activation = nil, virtio.Activation{}
	r.changed.Broadcast()
}

func (r *rx) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pending = nil
	r.changed.Broadcast()
}

// push has a packet without data sent, before all data that come later.
func (r *rx) push(h header) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pending = append(r.pending, h)
	if err := r.send(); err != nil {
		r.fail(err)
	}
}

// fail stops sending, until a reset.
func (r *rx) fail(err error) {
	r.activation.Fail(err)
	r.queue = nil
	r.changed.Broadcast()
}

// wake has all who wait look again.
func (r *rx) wake() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.changed.Broadcast()
}

// admit waits while too many packets wait. It returns false when paused.
func (r *rx) admit() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.queue != nil && len(r.pending) >= maxPending {
		r.changed.Wait()
	}
	return r.queue != nil
}

// pump sends what waits for room.
func (r *rx) pump() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.send(); err != nil {
		r.fail(err)
	}
	r.changed.Broadcast()
	return nil
}

// send sends what is pending, as far as there is room.
func (r *rx) send() error {
	for len(r.pending) > 0 && r.queue != nil {
		ok, err := r.queue.TakeRoom(&r.chain)
		if err != nil || !ok {
			return err
		}
		if _, err := r.put(r.pending[0], nil); err != nil {
			return err
		}
		r.pending = append(r.pending[:0], r.pending[1:]...)
	}
	return nil
}

// put fills the chain that was taken, and returns how much of data it took.
func (r *rx) put(h header, data []byte) (int, error) {
	n := min(len(data), virtio.Length(r.chain.Writable)-headerSize)
	if n < 0 || len(data) > 0 && n == 0 {
		return 0, fmt.Errorf("%w: a buffer of %d bytes for packets", virtio.ErrQueue, virtio.Length(r.chain.Writable))
	}
	h.length, h.kind, h.srcCID, h.dstCID = uint32(n), typeStream, hostCID, uint64(r.cid)
	b := h.bytes()
	rest, _ := virtio.Push(r.chain.Writable, b[:])
	virtio.Push(rest, data[:n])
	r.queue.Done(&r.chain, uint32(headerSize+n))
	if r.queue.Interrupt() {
		r.activation.Interrupt(rxQueue)
	}
	return n, nil
}

// data sends data of a connection as soon as there is room, and returns how
// much that was: 0 when the connection is over.
func (r *rx) data(c *conn, data []byte) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		if c.over.Load() {
			return 0
		}
		if r.queue != nil && len(r.pending) == 0 {
			ok, err := r.queue.TakeRoom(&r.chain)
			n := 0
			if err == nil && ok {
				n, err = r.put(c.header(opData), data)
			}
			if err != nil {
				r.fail(err)
			} else if ok {
				return n
			}
		}
		r.changed.Wait()
	}
}

// tx is the way from the guest.
type tx struct {
	device    *Device
	queue     *virtio.Queue
	interrupt func()
	chain     virtio.Chain
}

// drain handles what the guest has sent.
func (t *tx) drain(stopping <-chan struct{}) error {
	for !virtio.Closed(stopping) && t.device.rx.admit() {
		ok, err := t.queue.Take(&t.chain)
		if err != nil || !ok {
			return err
		}
		var b [headerSize]byte
		data, ok := virtio.Pull(t.chain.Readable, b[:])
		h := parse(&b)
		if !ok || uint64(h.length) > uint64(virtio.Length(data)) {
			return fmt.Errorf("%w: a packet of %d bytes says that it has %d", virtio.ErrQueue, virtio.Length(data), h.length)
		}
		t.device.handle(h, data)
		t.queue.Done(&t.chain, 0)
		if t.queue.Interrupt() {
			t.interrupt()
		}
	}
	return nil
}
