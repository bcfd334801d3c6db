package link

import (
	"encoding/binary"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

const (
	// window is how much may be on its way or unread in either direction.
	window = 256 << 10
	// ackAfter is how much is consumed before the other side is told.
	ackAfter = window / 4
	// maxQueued is how much connections leave to the writer at once.
	maxQueued = 2 * maxPayload
)

// conn is a connection. Its fields are guarded by endpoint.mu, but for the
// channels.
type conn struct {
	e  *endpoint
	id uint32

	in       []byte // received and unread, from off
	off      int
	consumed uint64 // bytes, by Read
	told     uint64 // of these, what the other side knows
	due      bool   // it is in endpoint.due

	sent  uint64
	taken uint64 // of these, what the other side has consumed

	err      error // why it ended
	readable chan struct{}
	writable chan struct{}
	ended    chan struct{}

	writing                     sync.Mutex // one Write at a time
	readDeadline, writeDeadline *deadline
}

// add begins a connection; with mu held.
func (e *endpoint) add(id uint32) *conn {
	c := &conn{
		e: e, id: id,
		readable: make(chan struct{}, 1), writable: make(chan struct{}, 1), ended: make(chan struct{}),
		readDeadline: newDeadline(), writeDeadline: newDeadline(),
	}
	e.conns[id] = c
	return c
}

// take takes a frame of this connection; with mu held. An error ends the
// session.
func (c *conn) take(f frame) error {
	switch f.kind {
	case data:
		if len(f.payload) == 0 {
			return errDamaged // nobody sends that, and no window bounds it
		}
		if len(c.in)-c.off+len(f.payload) > window {
			return errWindow
		}
		if c.off > 0 && len(c.in)+len(f.payload) > cap(c.in) {
			c.in = c.in[:copy(c.in, c.in[c.off:])]
			c.off = 0
		}
		c.in = append(c.in, f.payload...)
		notify(c.readable)
	case finish:
		delete(c.e.conns, c.id)
		c.end(io.EOF)
	case ack:
		if len(f.payload) != 8 {
			return errDamaged
		}
		taken := binary.BigEndian.Uint64(f.payload)
		if taken > c.sent || taken <= c.taken {
			return errWindow
		}
		c.taken = taken
		notify(c.writable)
	}
	return nil
}

// end ends the connection for a reason; with mu held. What has come can still
// be read.
func (c *conn) end(err error) {
	if c.err == nil {
		c.err = err
		close(c.ended)
	}
}

// acknowledge queues what the other side is to be told; with mu held. It is
// the writer's, so that there is never more than one acknowledgement on its
// way for what the other side doesn't read.
func (e *endpoint) acknowledge() {
	for _, c := range e.due {
		c.due = false
		if c.err == nil {
			c.told = c.consumed
			e.send(frame{kind: ack, conn: c.id, payload: binary.BigEndian.AppendUint64(nil, c.consumed)})
		}
	}
	e.due = e.due[:0]
	if e.pace.tell && !e.pace.told && e.session != 0 {
		e.pace.told = true
		e.send(frame{kind: credit, payload: binary.BigEndian.AppendUint32(nil, e.received)})
	}
}

// Read implements net.Conn.
func (c *conn) Read(p []byte) (int, error) {
	for {
		if c.readDeadline.passed() {
			return 0, os.ErrDeadlineExceeded
		}
		n, err := c.get(p)
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
		select {
		case <-c.readable:
		case <-c.ended:
		case <-c.readDeadline.wait():
		}
	}
}

// get is a Read that doesn't wait.
func (c *conn) get(p []byte) (int, error) {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	n := copy(p, c.in[c.off:])
	if n == 0 {
		return 0, c.err
	}
	c.off += n
	c.consumed += uint64(n)
	if c.off == len(c.in) {
		c.off, c.in = 0, c.in[:0]
	} else {
		notify(c.readable) // for another reader
	}
	if c.consumed-c.told >= ackAfter && !c.due && c.err == nil {
		c.due = true
		c.e.due = append(c.e.due, c)
		notify(c.e.wake)
	}
	return n, nil
}

// Write implements net.Conn. It returns when all is with the writer; what is
// beyond the window waits.
func (c *conn) Write(p []byte) (n int, err error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	for {
		if c.writeDeadline.passed() {
			return n, os.ErrDeadlineExceeded
		}
		k, err := c.put(p[n:])
		n += k
		if err != nil || n == len(p) {
			return n, err
		}
		if k > 0 {
			continue
		}
		select {
		case <-c.writable:
		case <-c.ended:
		case <-c.writeDeadline.wait():
		}
	}
}

// put queues what fits of p in one frame.
func (c *conn) put(p []byte) (int, error) {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	if c.err == io.EOF {
		return 0, ended(io.EOF)
	}
	if c.err != nil {
		return 0, c.err
	}
	n := min(len(p), window-int(c.sent-c.taken))
	if n <= 0 || len(c.e.out) >= maxQueued || !c.e.pace.may() {
		return 0, nil
	}
	h := &c.e.pace.hatch
	if h.passes(n) && h.full() {
		return 0, nil
	}
	if h.passes(n) {
		n = min(n, maxPayload)
		if word, ok := h.pass(p[:n]); ok {
			c.e.send(frame{kind: parcel, conn: c.id, payload: word})
			c.sent += uint64(n)
			return n, nil
		}
	}
	n = min(n, c.e.pace.payload())
	c.e.send(frame{kind: data, conn: c.id, payload: p[:n]})
	c.sent += uint64(n)
	return n, nil
}

// Close implements net.Conn: it tells the other side and doesn't wait for it.
func (c *conn) Close() error {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	c.close()
	return nil
}

// close is Close with mu held.
func (c *conn) close() {
	if c.err == nil {
		c.e.send(frame{kind: finish, conn: c.id})
		delete(c.e.conns, c.id)
		c.e.gone++
		c.end(net.ErrClosed)
	}
	c.err = net.ErrClosed
	c.in, c.off = nil, 0
}

// Addr is that of both ends.
type Addr struct{}

// Network implements net.Addr.
func (Addr) Network() string { return "link" }
func (Addr) String() string  { return "link" }

func (c *conn) LocalAddr() net.Addr  { return Addr{} }
func (c *conn) RemoteAddr() net.Addr { return Addr{} }

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(t time.Time) error {
	c.readDeadline.set(t)
	c.writeDeadline.set(t)
	return nil
}

// SetReadDeadline implements net.Conn.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.readDeadline.set(t)
	return nil
}

// SetWriteDeadline implements net.Conn.
func (c *conn) SetWriteDeadline(t time.Time) error {
	c.writeDeadline.set(t)
	return nil
}
