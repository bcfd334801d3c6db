package wire

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// Rule is what happens to frames in one direction.
type Rule struct {
	Cut   bool          `json:"cut,omitempty"`
	Delay time.Duration `json:"delay,omitempty"`
	Drop  float64       `json:"drop,omitempty"` // share of frames that are lost, 0 to 1
}

// Check refuses a rule that means nothing.
func (r Rule) Check() error {
	switch {
	case r.Delay < 0 || r.Delay > time.Minute:
		return fmt.Errorf("a delay of %s: it is from 0 to 1 minute", r.Delay)
	case !(r.Drop >= 0 && r.Drop <= 1):
		return fmt.Errorf("a loss of %v: it is from 0 to 1", r.Drop)
	}
	return nil
}

// Counters tell what became of the frames in one direction.
type Counters struct {
	Passed uint64 `json:"passed"`
	Lost   uint64 `json:"lost"` // by a rule, or because the reader was too slow
}

// direction is from one port to another, by name.
type direction struct{ from, to string }

// Bounds.
const (
	maxFrame = 64<<10 + 64 // a large segment, with headers and a tag
	maxQueue = 2048        // frames on their way in one direction
	maxNames = 4096        // addresses that are remembered
)

// Switch joins ports, which have names.
type Switch struct {
	mu     sync.Mutex
	ports  map[string]*port
	rules  map[direction]Rule
	counts map[direction]*Counters
	macs   map[[6]byte]string // the port behind which an address was seen last
}

// New makes a switch without ports.
func New() *Switch {
	return &Switch{ports: map[string]*port{}, rules: map[direction]Rule{}, counts: map[direction]*Counters{}, macs: map[[6]byte]string{}}
}

// Set sets the rule of a direction; ports need not be there yet.
func (s *Switch) Set(from, to string, r Rule) error {
	if err := r.Check(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r == (Rule{}) {
		delete(s.rules, direction{from, to})
	} else {
		s.rules[direction{from, to}] = r
	}
	return nil
}

// Rule is that of a direction.
func (s *Switch) Rule(from, to string) Rule {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rules[direction{from, to}]
}

// Counters are those of a direction.
func (s *Switch) Counters(from, to string) Counters {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.counts[direction{from, to}]; c != nil {
		return *c
	}
	return Counters{}
}

// Serve is a port for one connection, until that ends; a port of that name
// that is there already ends first. It closes conn.
func (s *Switch) Serve(name string, conn net.Conn) {
	p := &port{name: name, conn: conn, lines: map[string]*line{}, out: make(chan []byte, maxQueue), done: make(chan struct{})}
	s.mu.Lock()
	if old := s.ports[name]; old != nil {
		old.conn.Close()
	}
	s.ports[name] = p
	s.mu.Unlock()
	var writer sync.WaitGroup
	writer.Go(p.write)
	p.read(s)
	s.mu.Lock()
	if s.ports[name] == p {
		delete(s.ports, name)
	}
	for _, other := range s.ports {
		if l := other.lines[name]; l != nil && l.to == p {
			delete(other.lines, name)
		}
	}
	p.lines = nil // nothing is forwarded from it any more
	s.mu.Unlock()
	close(p.done)
	conn.Close()
	writer.Wait()
}

// port is one connection.
type port struct {
	name  string
	conn  net.Conn
	lines map[string]*line // of frames that are delayed, by where they go
	out   chan []byte
	done  chan struct{}
}

// read forwards what comes, until the connection ends.
func (p *port) read(s *Switch) {
	r := bufio.NewReaderSize(p.conn, 128<<10)
	for {
		var size uint32
		if binary.Read(r, binary.BigEndian, &size) != nil || size > maxFrame {
			return
		}
		// What a frame's queues keep is what was read, never written again.
		b := make([]byte, 4+size)
		binary.BigEndian.PutUint32(b, size)
		if _, err := io.ReadFull(r, b[4:]); err != nil {
			return
		}
		if size >= 14 { // IEEE 802.3: addresses and type
			s.forward(p, b)
		}
	}
}

// forward sends a frame, which has its length before it, on its ways.
func (s *Switch) forward(p *port, b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ports[p.name] != p {
		return
	}
	to, from := [6]byte(b[4:]), [6]byte(b[10:])
	if from[0]&1 == 0 {
		if len(s.macs) >= maxNames {
			clear(s.macs)
		}
		s.macs[from] = p.name
	}
	if name, known := s.macs[to]; known && to[0]&1 == 0 {
		if other := s.ports[name]; other != nil && other != p {
			s.send(p, other, b)
		}
		return
	}
	for _, other := range s.ports {
		if other != p {
			s.send(p, other, b)
		}
	}
}

// send sends a frame from one port to another, by their rule; with mu held.
func (s *Switch) send(p, to *port, b []byte) {
	d := direction{p.name, to.name}
	r, c := s.rules[d], s.counts[d]
	if c == nil {
		c = &Counters{}
		s.counts[d] = c
	}
	if r.Cut || (r.Drop > 0 && rand.Float64() < r.Drop) {
		c.Lost++
		return
	}
	l := p.lines[to.name]
	if l == nil || l.to != to {
		l = &line{to: to}
		p.lines[to.name] = l
	}
	if l.send(s, b, r.Delay) {
		c.Passed++
	} else {
		c.Lost++
	}
}

// write writes what the port gets.
func (p *port) write() {
	w := bufio.NewWriterSize(p.conn, 128<<10)
	for {
		select {
		case b := <-p.out:
			_, _ = w.Write(b) // a bufio.Writer keeps its first error
			if len(p.out) > 0 {
				continue
			}
			if w.Flush() != nil {
				p.conn.Close() // which ends read, and that ends this
				<-p.done
				return
			}
		case <-p.done:
			return
		}
	}
}

// put queues a frame, unless there are too many.
func (p *port) put(b []byte) bool {
	select {
	case p.out <- b:
		return true
	default:
		return false
	}
}

// line has the frames on their way from one port to another, in order;
// guarded by Switch.mu.
type line struct {
	to      *port
	waiting []delayed
	timer   *time.Timer
}

type delayed struct {
	b  []byte
	at time.Time
}

// send puts a frame on the line.
func (l *line) send(s *Switch, b []byte, delay time.Duration) bool {
	if delay == 0 && len(l.waiting) == 0 {
		return l.to.put(b)
	}
	if len(l.waiting) >= maxQueue {
		return false
	}
	at := time.Now().Add(delay)
	if n := len(l.waiting); n > 0 && at.Before(l.waiting[n-1].at) {
		at = l.waiting[n-1].at
	}
	l.waiting = append(l.waiting, delayed{b, at})
	if len(l.waiting) == 1 {
		l.timer = time.AfterFunc(delay, func() { l.deliver(s) })
	}
	return true
}

// deliver delivers what is due. The timer of a port that has gone finds a
// queue that nobody empties, and drops.
func (l *line) deliver(s *Switch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for len(l.waiting) > 0 && !l.waiting[0].at.After(now) {
		l.to.put(l.waiting[0].b)
		l.waiting = l.waiting[1:]
	}
	if len(l.waiting) > 0 {
		l.timer.Reset(l.waiting[0].at.Sub(now))
	}
}
