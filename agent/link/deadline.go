package link

import (
	"sync"
	"time"
)

// deadline is one that can be waited for and be moved meanwhile, as net.Conn
// demands.
type deadline struct {
	mu    sync.Mutex
	timer *time.Timer
	moves int           // tells a timer that fired as the deadline was moved
	past  chan struct{} // closed when it has passed; a new one when it is moved
	gone  bool          // past is closed
}

func newDeadline() *deadline { return &deadline{past: make(chan struct{})} }

// wait returns what is closed when the deadline passes.
func (d *deadline) wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.past
}

func (d *deadline) passed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.gone
}

// set moves the deadline, also of waits under way; the zero time is none.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.moves++
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	if d.gone {
		d.past, d.gone = make(chan struct{}), false
	}
	if t.IsZero() {
		return
	}
	if wait := time.Until(t); wait > 0 {
		moves := d.moves
		d.timer = time.AfterFunc(wait, func() { d.pass(moves) })
		return
	}
	d.gone = true
	close(d.past)
}

// pass is the timer's.
func (d *deadline) pass(moves int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.moves == moves {
		d.gone = true
		close(d.past)
	}
}
