package storage

import (
	"context"
	"sync"

	"github.com/cleave-project/cleave/api"
)

// Gate is what every call of an open pool passes, so that a pool is closed
// when no call is in it, and no call comes after. Calls about different
// volumes run at the same time, those about one volume one after the other.
type Gate struct {
	pool string // its name
	ids  idLocks

	mu   sync.RWMutex // read-held by every call
	shut bool         // guarded by mu
}

// NewGate returns the open gate of a pool.
func NewGate(pool string) *Gate { return &Gate{pool: pool} }

// Enter begins a call about the pool; the caller ends it with leave.
func (g *Gate) Enter() (leave func(), err error) {
	g.mu.RLock()
	if g.shut {
		g.mu.RUnlock()
		return nil, g.closed()
	}
	return g.mu.RUnlock, nil
}

// EnterVolume begins a call about one volume when its turn has come.
func (g *Gate) EnterVolume(ctx context.Context, id string) (leave func(), _ error) {
	if err := CheckID(id); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	out, err := g.Enter()
	if err != nil {
		return nil, err
	}
	unlock := g.ids.Lock(id)
	return func() { unlock(); out() }, nil
}

// EnterAlone begins a call that no other runs beside.
func (g *Gate) EnterAlone() (leave func(), err error) {
	g.mu.Lock()
	if g.shut {
		g.mu.Unlock()
		return nil, g.closed()
	}
	return g.mu.Unlock, nil
}

// Shut lets no call in any more, and tells whether the gate was open. Only
// who is in alone may call it, or the one who opens the pool.
func (g *Gate) Shut() bool {
	open := !g.shut
	g.shut = true
	return open
}

func (g *Gate) closed() error {
	return api.Errorf(api.CodeUnavailable, "pool %q is closed", g.pool)
}
