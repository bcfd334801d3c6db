package dns

import (
	"net/netip"
	"sync"
)

// What guests may occupy at one time, together and each. The rate at which
// one may ask is held by the packet filter.
const (
	mostForwards    = 512
	mostForwardsOne = 64
	mostConns       = 512
	mostConnsOne    = 16
)

// limits count what is being done for whom.
type limits struct {
	forwards, conns gate
}

func newLimits() *limits {
	return &limits{
		forwards: gate{all: mostForwards, one: mostForwardsOne, by: map[netip.Addr]int{}},
		conns:    gate{all: mostConns, one: mostConnsOne, by: map[netip.Addr]int{}},
	}
}

// gate admits so many at once, and of one source fewer.
type gate struct {
	all, one int

	mu    sync.Mutex
	count int
	by    map[netip.Addr]int
}

// enter is false when there is no room; else leave must follow.
func (g *gate) enter(source netip.Addr) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.count >= g.all || g.by[source] >= g.one {
		return false
	}
	g.count++
	g.by[source]++
	return true
}

func (g *gate) leave(source netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.count--
	if g.by[source]--; g.by[source] == 0 {
		delete(g.by, source)
	}
}
