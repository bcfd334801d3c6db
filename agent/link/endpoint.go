package link

import (
	"bufio"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/cleave-project/cleave/api"
)

// ErrHungUp is what a channel's Read may return in the guest to say that the
// host's end of the channel has closed and may open again: the session has
// ended, and reading goes on.
var ErrHungUp = errors.New("the host hung up")

// endpoint is one side of a channel. Its writer is the only one that writes to
// the channel and its reader the only one that reads, so that whoever uses a
// connection waits for neither.
type endpoint struct {
	ch    io.ReadWriteCloser
	hatch io.ReaderAt   // the guest's end, or nil
	side  kind          // of what it sends: 0 or fromGuest
	wake  chan struct{} // for the writer
	done  chan struct{} // closed when err is set

	mu     sync.Mutex
	enc    encoder
	out    []byte // encoded, for the writer
	hangUp bool   // close the channel when out is written
	err    error  // why the channel has ended

	// Of the session that there is:
	session  uint64 // 0 for none
	conns    map[uint32]*conn
	due      []*conn // whose other side is to be told what was consumed
	sent     uint32  // frames with a sequence
	received uint32
	gone     int // connections that have been closed here
	strays   int // bytes that came for these, or frames without any
	pace     pace
}

func newEndpoint(ch io.ReadWriteCloser, side kind) *endpoint {
	return &endpoint{
		ch: ch, side: side, wake: make(chan struct{}, 1), done: make(chan struct{}),
		conns: make(map[uint32]*conn),
		out:   []byte{delimiter}, // ends what an earlier process left half written
	}
}

// start begins to read and write. handle gets each frame of the other side,
// and damaged why something was none; both are called with mu held.
func (e *endpoint) start(handle func(frame), damaged func(error)) {
	notify(e.wake)
	go e.write()
	go func() {
		s, t := scanner{bufio.NewReaderSize(e.ch, maxStuffed+1)}, taker{r: e.hatch}
		for {
			f, whole, err := s.next()
			if err != nil && !errors.Is(err, ErrHungUp) {
				e.fail(err)
				return
			}
			if whole && e.side == fromGuest && f.kind == parcel {
				f, whole = t.take(f)
			}
			e.mu.Lock()
			switch {
			case err != nil:
				damaged(err)
			case !whole:
				damaged(errDamaged)
			case f.kind&fromGuest != e.side:
				f.kind &^= fromGuest
				handle(f)
			}
			e.mu.Unlock()
		}
	}()
}

var (
	errDamaged = errors.New("what came over the channel was damaged")
	errLost    = errors.New("a part of what was sent is lost")
	errWindow  = errors.New("the other side doesn't keep to the window")
	errAnew    = errors.New("the other side began anew")
	errOther   = errors.New("something else answers")
)

// write writes what there is to write until the channel ends.
func (e *endpoint) write() {
	var spare []byte
	for {
		e.mu.Lock()
		e.acknowledge()
		buf := e.out
		e.out = spare[:0]
		hangUp := e.hangUp
		for _, c := range e.conns {
			notify(c.writable)
		}
		e.mu.Unlock()
		switch {
		case len(buf) > 0:
			if _, err := e.ch.Write(buf); err != nil {
				e.fail(err)
				return
			}
		case hangUp:
			e.fail(io.EOF)
			return
		default:
			select {
			case <-e.wake:
			case <-e.done:
				return
			}
		}
		if spare = buf; cap(spare) > keptBuffer {
			spare = nil // a burst needn't cost a quiet guest its memory
		}
	}
}

// keptBuffer is how much of a buffer is kept when it is empty.
const keptBuffer = 2 * maxQueued

// notify leaves word in a channel of one place.
func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// send queues a frame; with mu held.
func (e *endpoint) send(f frame) {
	if f.kind >= connect {
		f.session, f.sequence = e.session, e.sent
		e.sent++
	}
	f.kind |= e.side
	before := len(e.out)
	e.out = e.enc.append(e.out, f)
	if f.kind&^fromGuest >= connect {
		e.pace.send(len(e.out)-before, f.kind == parcel)
	}
	notify(e.wake)
}

// take gives a frame of the session to its connection; with mu held.
func (e *endpoint) take(f frame) {
	if f.sequence != e.received {
		e.end(errLost)
		return
	}
	e.received++
	if f.kind == credit {
		if !e.pace.credit(f.payload) {
			e.end(errDamaged)
		}
		notify(e.wake)
		return
	}
	if e.pace.told = false; e.pace.tell {
		notify(e.wake) // for the writer to tell so
	}
	c := e.conns[f.conn]
	if c == nil {
		// One that has been closed here may still be sent to, for a while.
		if e.strays += max(1, len(f.payload)); e.strays > (e.gone+1)*2*window {
			e.end(errWindow)
		}
		return
	}
	if err := c.take(f); err != nil {
		e.end(err)
	}
}

// end ends the session and its connections; with mu held.
func (e *endpoint) end(err error) {
	for _, c := range e.conns {
		c.end(ended(err))
	}
	clear(e.conns)
	e.due = nil
	e.session, e.gone, e.strays = 0, 0, 0
	e.pace.begin()
}

// fail ends the channel.
func (e *endpoint) fail(err error) {
	e.mu.Lock()
	if e.err != nil {
		e.mu.Unlock()
		return
	}
	e.err = err
	e.end(err)
	close(e.done)
	e.mu.Unlock()
	e.ch.Close()
}

// flushGrace is how long the other side may take to read that the connections
// are closed, before the channel is.
const flushGrace = 250 * time.Millisecond

// finish closes the channel when all is written.
func (e *endpoint) finish() {
	e.mu.Lock()
	for _, c := range e.conns {
		c.close()
	}
	e.hangUp = true
	notify(e.wake)
	e.mu.Unlock()
	t := time.AfterFunc(flushGrace, func() { e.fail(io.EOF) })
	go func() {
		<-e.done
		t.Stop()
	}()
}

// ended is the error of a connection whose session has ended.
func ended(err error) error {
	if errors.Is(err, io.EOF) {
		err = errors.New("the channel ended")
	}
	return api.Errorf(api.CodeUnavailable, "link to the guest's agent: %w", err)
}
