package control

import (
	"context"
	"sync"
)

// workers runs at most one converge per instance at a time. A kick during it
// wakes it, and has it run once more.
type workers struct {
	mu     sync.Mutex
	active map[string]*worker
	closed bool
	wg     sync.WaitGroup
	ctx    context.Context // of all converging
	halt   context.CancelFunc
}

type worker struct {
	again bool
	wake  chan struct{} // holds one kick that came during converge
}

// kick has the instance looked at soon.
func (c *Controller) kick(id string) {
	c.workers.mu.Lock()
	defer c.workers.mu.Unlock()
	if c.workers.closed {
		return
	}
	if w := c.workers.active[id]; w != nil {
		w.again = true
		select {
		case w.wake <- struct{}{}:
		default:
		}
		return
	}
	if c.workers.active == nil {
		c.workers.active = map[string]*worker{}
	}
	w := &worker{wake: make(chan struct{}, 1)}
	c.workers.active[id] = w
	c.workers.wg.Go(func() { c.work(id, w) })
}

func (c *Controller) work(id string, w *worker) {
	for {
		c.converge(id, w.wake)
		c.workers.mu.Lock()
		if !w.again || c.workers.closed {
			delete(c.workers.active, id)
			c.workers.mu.Unlock()
			return
		}
		w.again = false
		c.workers.mu.Unlock()
	}
}

// close lets no new work begin, has what is under way given up where it
// stands, and waits for that.
func (w *workers) close() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.halt()
	w.wg.Wait()
}
