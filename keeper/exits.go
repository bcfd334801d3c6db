package keeper

import "sync"

// subscriber is a client that wants to hear of exits.
type subscriber struct {
	mu      sync.Mutex
	changed *sync.Cond
	queue   []Guest
	closed  bool
}

func (s *server) serveExits(c *conn) {
	sub := &subscriber{}
	sub.changed = sync.NewCond(&sub.mu)
	s.mu.Lock()
	s.exits[sub] = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.exits, sub)
		s.mu.Unlock()
	}()
	if c.send(reply{}) != nil {
		return
	}
	left := make(chan struct{})
	go func() {
		defer close(left)
		_, _ = c.Read(make([]byte, 1)) // the client says nothing more: this is its leaving
		sub.close()
	}()
	for {
		ends, ok := sub.take()
		if !ok {
			break
		}
		for _, g := range ends {
			if c.send(reply{Guest: &g}) != nil {
				sub.close()
			}
		}
	}
	c.Close()
	<-left
}

// take waits for ends, and reports false once the client has left.
func (sub *subscriber) take() ([]Guest, bool) {
	sub.mu.Lock()
	defer sub.mu.Unlock()
	for len(sub.queue) == 0 && !sub.closed {
		sub.changed.Wait()
	}
	ends := sub.queue
	sub.queue = nil
	return ends, !sub.closed
}

func (sub *subscriber) put(g Guest) {
	sub.mu.Lock()
	defer sub.mu.Unlock()
	sub.queue = append(sub.queue, g)
	sub.changed.Signal()
}

func (sub *subscriber) close() {
	sub.mu.Lock()
	defer sub.mu.Unlock()
	sub.closed = true
	sub.changed.Signal()
}

// ended tells everybody of an exit, once.
func (s *server) ended(g *guest, info Guest) {
	s.store.save(g)
	s.mu.Lock()
	defer s.mu.Unlock()
	for sub := range s.exits {
		sub.put(info)
	}
}
