package net

import (
	"encoding/binary"
	"errors"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/vmm/virtio"
)

// Counts are of one direction, as the guest sees it.
type Counts struct {
	Packets, Bytes uint64
	// Dropped are packets that were lost on this side: for want of room or of
	// a link, because they are wrong, or because the tap refused them.
	Dropped uint64
}

// Metrics are of all of a device's pairs.
type Metrics struct{ Received, Sent Counts }

type counter struct{ packets, bytes, dropped atomic.Uint64 }

func (c *counter) count(bytes int) {
	c.packets.Add(1)
	c.bytes.Add(uint64(bytes))
}

func (c *Counts) add(n *counter) {
	c.Packets += n.packets.Load()
	c.Bytes += n.bytes.Load()
	c.Dropped += n.dropped.Load()
}

const (
	// maxPacket is the largest that a tap gives: 64 KiB of IP behind the
	// headers of Ethernet and of a VLAN.
	maxPacket = headerSize + 65535 + 18
	minPacket = 14 // of Ethernet
	// signalEvery is after how many packets at the latest the driver is
	// interrupted.
	signalEvery = 32
)

// port is a pair of queues with its queue of the tap.
type port struct {
	device *Device
	n      int
	tap    *Tap
	down   atomic.Bool

	received, sent counter

	// What follows is set by the device, under its lock.
	activation virtio.Activation
	stopSend   func()
	stopping   chan struct{} // of the receiver; nil if there is none
	stopped    chan struct{}

	rx receiver
	tx sender
}

func newPort(d *Device, tap *Tap, n int) *port {
	p := &port{device: d, tap: tap, n: n}
	p.rx.init(p)
	p.tx.init(p)
	return p
}

func (p *port) activate(a virtio.Activation) {
	p.activation, p.stopSend = a, func() {}
	if q := 2*p.n + 1; a.Queues[q] != nil {
		_ = p.tap.file.SetWriteDeadline(time.Time{})
		p.stopSend = a.Watch(q, p.tx.drain)
	}
}

func (p *port) pause() {
	_ = p.tap.file.SetWriteDeadline(time.Unix(1, 0))
	p.stopSend()
	p.stopReceiving()
}

func (p *port) forget() { p.rx.waiting = p.rx.waiting[:0] }

// startReceiving has packets come to the guest, if it has a queue for them.
func (p *port) startReceiving() {
	if p.stopping != nil || p.activation.Queues[2*p.n] == nil {
		return
	}
	p.stopping, p.stopped = make(chan struct{}), make(chan struct{})
	go func() {
		defer close(p.stopped)
		if err := p.rx.run(p.activation, p.stopping); err != nil {
			p.activation.Fail(err)
		}
	}()
}

func (p *port) stopReceiving() {
	if p.stopping == nil {
		return
	}
	close(p.stopping)
	kick := p.activation.Kicks[2*p.n]
	_ = kick.SetReadDeadline(time.Unix(1, 0))
	_ = p.tap.file.SetReadDeadline(time.Unix(1, 0))
	<-p.stopped
	_ = kick.SetReadDeadline(time.Time{})
	_ = p.tap.file.SetReadDeadline(time.Time{})
	p.stopping = nil
}

// vectors is what a system call on the tap is made with: its closure is made
// once, so that nothing is allocated for a packet.
type vectors struct {
	iovecs []unix.Iovec
	n      int
	errno  unix.Errno
	call   uintptr
	once   func(fd uintptr) bool
}

func (v *vectors) init(call uintptr) {
	v.call = call
	v.once = func(fd uintptr) bool {
		n, _, errno := unix.Syscall(v.call, fd, uintptr(unsafe.Pointer(&v.iovecs[0])), uintptr(len(v.iovecs)))
		v.n, v.errno = int(n), errno
		return errno != unix.EAGAIN && errno != unix.EINTR
	}
}

// maxIovecs is what a call takes (UIO_MAXIOV).
const maxIovecs = 1024

// add appends pieces, up to a number of bytes; it returns how many those were.
func (v *vectors) add(pieces [][]byte, most int) (n int) {
	for _, p := range pieces {
		if p = p[:min(len(p), most-n)]; len(p) > 0 && len(v.iovecs) < maxIovecs {
			v.iovecs = append(v.iovecs, unix.Iovec{Base: &p[0], Len: uint64(len(p))})
			n += len(p)
		}
	}
	return n
}

// reset forgets addresses of memory that may be gone when it is used again.
func (v *vectors) reset() {
	clear(v.iovecs)
	v.iovecs = v.iovecs[:0]
}

func stopped(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, os.ErrClosed)
}

// sender takes packets from the guest to the tap.
type sender struct {
	port   *port
	chain  virtio.Chain
	header [headerSize]byte
	vectors
}

func (s *sender) init(p *port) {
	s.port = p
	s.vectors.init(unix.SYS_WRITEV)
}

// drain sends what the guest has for that.
func (s *sender) drain(stopping <-chan struct{}) error {
	n := 2*s.port.n + 1
	a := &s.port.activation
	q := a.Queues[n]
	signal := func() {
		if q.Interrupt() {
			a.Interrupt(n)
		}
	}
	defer signal()
	for unsignaled := 1; !virtio.Closed(stopping); unsignaled++ {
		ok, err := q.Take(&s.chain)
		if err != nil || !ok {
			return err
		}
		size := virtio.Length(s.chain.Readable)
		limit, cost := s.port.device.options.Send, max(0, size-headerSize)
		pass := limit.Try(cost)
		if !pass {
			signal() // of those sent before: this may take long
			pass = limit.Take(stopping, cost)
		}
		if !pass || !s.send(size) {
			q.PutBack()
			return nil
		}
		q.Done(&s.chain, 0)
		if unsignaled%signalEvery == 0 {
			signal()
		}
	}
	return nil
}

// send sends a packet, or drops it. It returns false if it was told to stop
// before the tap had room.
func (s *sender) send(size int) bool {
	rest, ok := virtio.Pull(s.chain.Readable, s.header[:])
	if !ok || size < headerSize+minPacket || size > maxPacket || s.port.down.Load() || !checkHeader(&s.header, size-headerSize, s.port.activation.Features) {
		s.port.sent.dropped.Add(1)
		return true
	}
	s.iovecs = append(s.iovecs, unix.Iovec{Base: &s.header[0], Len: headerSize})
	defer s.reset()
	fits := s.add(rest, size) == size-headerSize
	if fits {
		if err := s.port.tap.conn.Write(s.once); stopped(err) {
			return false
		} else if err != nil {
			s.errno = unix.EIO
		}
	}
	if !fits || s.errno != 0 {
		s.port.sent.dropped.Add(1)
		return true
	}
	s.port.sent.count(size - headerSize)
	return true
}

// Flags and types of segmentation in a packet's header (5.1.6).
const (
	flagNeedsCSUM = 1

	gsoNone  = 0
	gsoTCPv4 = 1
	gsoUDP   = 3
	gsoTCPv6 = 4
	gsoUDPL4 = 5
	gsoECN   = 0x80
)

// checkHeader tells whether a guest's header is one that it may use for a
// packet of size bytes, and leaves of it what the tap shall see (5.1.6.2).
func checkHeader(h *[headerSize]byte, size int, features uint64) bool {
	le := binary.LittleEndian
	h[0] &= flagNeedsCSUM // others mean nothing in this direction
	le.PutUint16(h[10:], 0)
	csum := h[0]&flagNeedsCSUM != 0
	if csum {
		if features&FeatureCSUM == 0 || int(le.Uint16(h[6:]))+int(le.Uint16(h[8:]))+2 > size {
			return false
		}
	}
	var needed uint64
	switch h[1] &^ gsoECN {
	case gsoNone:
		return h[1] == gsoNone
	case gsoTCPv4:
		needed = FeatureHostTSO4
	case gsoTCPv6:
		needed = FeatureHostTSO6
	case gsoUDP:
		needed = FeatureHostUFO
	case gsoUDPL4:
		needed = FeatureHostUSO
	default:
		return false
	}
	if h[1]&gsoECN != 0 {
		needed |= FeatureHostECN
	}
	return csum && features&needed == needed && le.Uint16(h[4:]) != 0 && int(le.Uint16(h[2:])) <= size
}
