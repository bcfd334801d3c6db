package vmm

import "sync"

// gate is what vCPUs pass before they enter the guest.
type gate struct {
	mu      sync.Mutex
	change  *sync.Cond
	closed  bool
	held    bool // shut for a moment: hold
	broken  bool // open for ever
	members int  // vCPUs that live
	waiting int  // of them, before the gate
}

func (g *gate) init() { g.change = sync.NewCond(&g.mu) }

func (g *gate) join() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.members++
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.members--
	g.change.Broadcast()
}

// pass waits while the gate is shut. A vCPU whose last exit isn't complete is
// told to complete it first: else its state would be of the middle of an
// instruction.
func (g *gate) pass(unfinished bool) (finish bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if (g.closed || g.held) && !g.broken && unfinished {
		return true
	}
	for (g.closed || g.held) && !g.broken {
		g.waiting++
		g.change.Broadcast()
		g.change.Wait()
		g.waiting--
	}
	return false
}

// shut lets nobody pass any more; wait returns when all are before the gate.
func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
}

func (g *gate) wait() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.closed && !g.broken && g.waiting < g.members {
		g.change.Wait()
	}
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = false
	g.change.Broadcast()
}

// hold lets nobody pass for a moment, beside what shut and open say.
func (g *gate) hold(on bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.held = on
	g.change.Broadcast()
}

// breakDown opens the gate for good: the machine ends.
func (g *gate) breakDown() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.broken = true
	g.change.Broadcast()
}
