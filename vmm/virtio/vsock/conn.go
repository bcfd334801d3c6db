package vsock

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// bufAlloc is how much a connection may hold that the guest has sent.
	bufAlloc = 256 << 10
	// readSize is how much is read from the host at once.
	readSize = 64 << 10
	// firstPort is the first of those that the host's programs get.
	firstPort = 1 << 30
	// lingering is how long a guest may take to answer a shutdown.
	lingering = 5 * time.Second
)

// key is what tells connections apart.
type key struct{ host, guest uint32 }

// conn is a connection. Its fields are guarded by the device's lock, but for
// those that packets to the guest are made from.
type conn struct {
	key
	device  *Device
	sock    net.Conn // nil while it is dialed
	changed *sync.Cond

	// Of what comes from the guest: out is to be written, received counts
	// all, forwarded what was written.
	out       []byte
	spare     []byte
	received  uint32
	told      uint32 // forwarded, as the guest was told last
	forwarded atomic.Uint32

	// Of what goes there: credit as it has said, sent counts what it got.
	peerAlloc, peerForwarded uint32
	sent                     uint32
	asked                    bool // for more credit

	established bool
	guestShut   uint32 // what the guest will not do any more
	hostShut    uint32 // what it was told of us
	linger      *time.Timer
	over        atomic.Bool
}

// newConn registers a connection, unless there are too many.
func (d *Device) newConn(k key, sock net.Conn) *conn {
	if len(d.conns) >= maxConns || d.conns[k] != nil || d.closed {
		return nil
	}
	c := &conn{key: k, device: d, sock: sock, changed: sync.NewCond(&d.mu)}
	d.conns[k] = c
	return c
}

// header is one of the connection's packets.
func (c *conn) header(op uint16) header {
	return header{srcPort: c.host, dstPort: c.guest, op: op, bufAlloc: bufAlloc, fwdCnt: c.forwarded.Load()}
}

func (c *conn) push(op uint16, flags uint32) {
	h := c.header(op)
	h.flags = flags
	c.device.rx.push(h)
}

// drop ends a connection, without a word to the guest.
func (d *Device) drop(c *conn) {
	if c.over.Swap(true) {
		return
	}
	delete(d.conns, c.key)
	if c.linger != nil {
		c.linger.Stop()
	}
	if c.sock != nil {
		_ = c.sock.Close()
	}
	c.changed.Broadcast()
	d.rx.wake() // who waits there looks whether it is over
}

// reset ends a connection, and tells the guest.
func (d *Device) reset(c *conn) {
	if !c.over.Load() {
		d.drop(c)
		c.push(opReset, 0)
	}
}

// start lets data pass.
func (d *Device) start(c *conn) {
	c.established = true
	d.group.Go(c.read)
	d.group.Go(c.write)
}

// credit is how much the guest has room for (5.10.6.3).
func (c *conn) credit() uint32 {
	inFlight := c.sent - c.peerForwarded
	if inFlight >= c.peerAlloc {
		return 0
	}
	return c.peerAlloc - inFlight
}

// await waits until the guest has room, and returns how much; 0 when it will
// not have any.
func (c *conn) await() uint32 {
	c.device.mu.Lock()
	defer c.device.mu.Unlock()
	for {
		if c.over.Load() || c.guestShut&shutdownReceive != 0 {
			return 0
		}
		if n := c.credit(); n > 0 {
			c.asked = false
			return n
		}
		if !c.asked {
			c.asked = true
			c.push(opCreditRequest, 0)
		}
		c.changed.Wait()
	}
}

// read brings what the host sends to the guest.
func (c *conn) read() {
	b := make([]byte, readSize)
	for {
		room := c.await()
		if room == 0 {
			return
		}
		n, err := c.sock.Read(b[:min(len(b), int(room))])
		for rest := b[:n]; len(rest) > 0; {
			k := c.device.rx.data(c, rest)
			if k == 0 {
				return
			}
			rest = rest[k:]
			c.device.mu.Lock()
			c.sent += uint32(k)
			c.device.mu.Unlock()
		}
		if err != nil {
			c.hostEnded(err)
			return
		}
	}
}

// hostEnded tells the guest that the host will send no more, and, if it has
// closed its socket, take no more.
func (c *conn) hostEnded(err error) {
	c.device.mu.Lock()
	defer c.device.mu.Unlock()
	switch {
	case c.over.Load():
	case !errors.Is(err, io.EOF):
		c.device.reset(c)
	case hungUp(c.sock):
		c.shut(shutdownBoth)
	default:
		c.shut(shutdownSend)
	}
}

// hungUp tells whether the other side has closed its socket, and not only
// ended what it sends.
func hungUp(sock net.Conn) bool {
	s, ok := sock.(syscall.Conn)
	if !ok {
		return true
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return true
	}
	up := false
	err = raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd)}}
		_, _ = unix.Poll(p, 0)
		up = p[0].Revents&unix.POLLHUP == 0
	})
	return err != nil || !up
}

// shut tells the guest what the host will not do any more; when that is
// everything, the guest is to answer with a reset before long.
func (c *conn) shut(flags uint32) {
	if c.hostShut|flags == c.hostShut {
		return
	}
	c.hostShut |= flags
	c.push(opShutdown, c.hostShut)
	if c.hostShut == shutdownBoth && c.linger == nil {
		c.linger = time.AfterFunc(lingering, func() {
			c.device.mu.Lock()
			defer c.device.mu.Unlock()
			c.device.reset(c)
		})
	}
	c.settle()
}

// settle ends a connection that both sides are done with.
func (c *conn) settle() {
	switch {
	case c.guestShut == shutdownBoth && len(c.out) == 0 && c.received == c.forwarded.Load():
		c.device.reset(c) // which is the answer to its shutdown
	case c.guestShut&shutdownSend != 0 && c.hostShut&shutdownSend != 0 && len(c.out) == 0 && c.received == c.forwarded.Load():
		c.shut(shutdownBoth)
	}
}

// take waits for what the guest has sent; nil when there will be no more.
func (c *conn) take() []byte {
	c.device.mu.Lock()
	defer c.device.mu.Unlock()
	for len(c.out) == 0 {
		if c.over.Load() || c.guestShut&shutdownSend != 0 {
			return nil
		}
		c.changed.Wait()
	}
	b := c.out
	c.out, c.spare = c.spare[:0], nil
	return b
}

// write brings what the guest sends to the host.
func (c *conn) write() {
	for {
		b := c.take()
		if b == nil {
			break
		}
		_, err := c.sock.Write(b)
		c.device.mu.Lock()
		c.forwarded.Add(uint32(len(b)))
		c.spare = b
		switch {
		case c.over.Load():
		case err != nil:
			c.device.reset(c)
		case c.forwarded.Load()-c.told >= bufAlloc/4:
			c.told = c.forwarded.Load()
			c.push(opCreditUpdate, 0)
		}
		c.device.mu.Unlock()
		if err != nil {
			return
		}
	}
	c.device.mu.Lock()
	defer c.device.mu.Unlock()
	if c.over.Load() {
		return
	}
	if w, ok := c.sock.(interface{ CloseWrite() error }); ok {
		_ = w.CloseWrite()
	}
	c.settle()
}
