package console

import (
	"sync"
	"time"

	"github.com/cleave-project/cleave/vmm/virtio"
)

// ahead is how much is taken from a host's end before the guest has room.
const ahead = 16 << 10

// past is a deadline that has passed.
var past = time.Unix(1, 0)

// port is one line.
type port struct {
	device *Device
	name   string
	filled chan struct{} // holds a token when there may be something for the guest

	mu   sync.Mutex
	conn Conn       // the host's end; nil while there is none
	data []byte     // from it, for the guest
	room *sync.Cond // tells that data is empty, or conn another

	known  bool // the driver has the port
	opened bool // so has a program in the guest
	// Messages that are due to the driver: that there is the port, its name,
	// and whether the host's end is open.
	toAdd, toName, toOpen bool

	stopping bool // no write may wait

	// Of the queue from the guest, and of who works on that: sent is how much
	// of the request at its head was written.
	sent    int
	writing *virtio.Queue
	finish  func(*virtio.Chain) // gives a request back
}

func newPort(d *Device, name string) *port {
	p := &port{device: d, name: name, filled: make(chan struct{}, 1)}
	p.room = sync.NewCond(&p.mu)
	return p
}

// connect replaces the host's end; nil for none.
func (p *port) connect(c Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn != nil {
		p.conn.Close()
	}
	p.conn, p.data = c, nil
	if c != nil {
		if p.stopping {
			_ = c.SetWriteDeadline(past)
		}
		go p.read(c) // ends with c
	}
	p.tell()
}

// tell has the driver hear of the host's end.
func (p *port) tell() {
	p.room.Broadcast()
	if p.known {
		p.toOpen = true
		p.device.wake()
	}
}

// disconnect is the end of c. What came from it is still for the guest.
func (p *port) disconnect(c Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c.Close()
	if p.conn == c {
		p.conn = nil
		p.tell()
	}
}

// read takes in what comes from c until it ends, or another is there.
func (p *port) read(c Conn) {
	defer p.disconnect(c)
	b := make([]byte, ahead)
	for {
		n, err := c.Read(b)
		if n > 0 && !p.offer(c, b[:n]) || err != nil {
			return
		}
	}
}

// offer waits until the guest has taken b, or c is not the host's end any
// more.
func (p *port) offer(c Conn, b []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn != c {
		return false
	}
	p.data = b
	p.look()
	for p.conn == c && len(p.data) > 0 {
		p.room.Wait()
	}
	return p.conn == c
}

// look has the queue to the guest looked at.
func (p *port) look() {
	select {
	case p.filled <- struct{}{}:
	default:
	}
}

// fill is the source of the queue to the guest.
func (p *port) fill(stopping <-chan struct{}, buffer [][]byte) (int, bool) {
	for {
		if n, ok := p.give(buffer); ok {
			return n, true
		}
		select {
		case <-p.filled:
		case <-stopping:
			return 0, false
		}
	}
}

// give moves what there is into a buffer; ok says that there is something.
func (p *port) give(buffer [][]byte) (n int, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.opened || len(p.data) == 0 {
		return 0, false
	}
	if buffer == nil {
		return 0, true
	}
	n = min(len(p.data), virtio.Length(buffer))
	virtio.Push(buffer, p.data[:n])
	if p.data = p.data[n:]; len(p.data) == 0 {
		p.data = nil
		p.room.Broadcast()
	}
	return n, true
}

// announce says that the driver is there and is to hear of the port, or has
// gone.
func (p *port) announce(there bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known, p.opened, p.toName, p.toOpen = false, false, false, false
	p.toAdd = there
	p.device.wake()
}

// ready says that the driver has the port, or could not make use of it.
func (p *port) ready(known bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known, p.toName, p.toOpen = known, known, known
	p.device.wake()
}

// open says whether a program in the guest has the port.
func (p *port) open(opened bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.opened = opened
	p.look()
}

func (p *port) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known, p.opened, p.toAdd, p.toName, p.toOpen, p.sent, p.writing = false, false, false, false, false, 0, nil
}

// drain sends what comes from the guest.
func (p *port) drain(a virtio.Activation, n int) (stop func()) {
	p.halt(false, time.Time{})
	p.writing = a.Queues[n]
	p.finish = func(c *virtio.Chain) {
		a.Queues[n].Done(c, 0)
		if a.Queues[n].Interrupt() {
			a.Interrupt(n)
		}
	}
	stopWatch := a.Watch(n, func(<-chan struct{}) error { return p.send(p.halted) })
	return func() {
		p.halt(true, past)
		stopWatch()
	}
}

// halt bounds writes to the host's end.
func (p *port) halt(stopping bool, deadline time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopping = stopping
	if p.conn != nil {
		// What has no deadlines doesn't block.
		_ = p.conn.SetWriteDeadline(deadline)
	}
}

// flush sends what is still in the queue, which nobody else looks at.
func (p *port) flush(deadline time.Time) {
	p.halt(true, deadline)
	if p.writing != nil {
		_ = p.send(func() bool { return false }) // what breaks the queue doesn't matter any more
	}
}

// halted tells whether no write may wait.
func (p *port) halted() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stopping
}

// end is the host's end.
func (p *port) end() Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.conn
}

// send sends requests until there are none, or it is told to stop.
func (p *port) send(stop func() bool) error {
	var c virtio.Chain
	for !stop() {
		ok, err := p.writing.Take(&c)
		if err != nil || !ok {
			return err
		}
		if !p.write(c.Readable) {
			p.writing.PutBack()
			return nil
		}
		p.finish(&c)
	}
	return nil
}

// write sends a request, from where an earlier attempt came to. It returns
// false when writing was stopped before all was sent.
func (p *port) write(pieces [][]byte) bool {
	skip := p.sent
	for _, b := range pieces {
		if skip >= len(b) {
			skip -= len(b)
			continue
		}
		c := p.end()
		if c == nil {
			break // nobody is there to hear it
		}
		n, err := c.Write(b[skip:])
		p.sent += n
		skip = 0
		if err == nil {
			continue
		}
		if p.halted() {
			return false
		}
		p.disconnect(c)
		break
	}
	p.sent = 0
	return true
}
