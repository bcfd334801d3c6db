package vmm

import (
	"context"

	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/machine"
)

// Engine runs virtual machines by cleave-vmm. It implements engine.Engine,
// engine.Plugger, engine.Grower, engine.Saver and engine.Tracker.
type Engine struct {
	*machine.Engine
	mon *monitor
}

var (
	_ engine.Engine   = (*Engine)(nil)
	_ engine.Plugger  = (*Engine)(nil)
	_ engine.Grower   = (*Engine)(nil)
	_ machine.Monitor = (*monitor)(nil)
	_ machine.Teller  = (*monitor)(nil)
)

// Name is the engine's, as guests ask for it.
const Name = "vmm"

// New opens the engine, whose monitor is the program cleave-vmm at that path.
// Guests that an earlier daemon started live on and are in List.
func New(program string, opts engine.Options) (*Engine, error) {
	mon := newMonitor(program)
	e, err := machine.New(mon, opts)
	if err != nil {
		return nil, err
	}
	return &Engine{Engine: e, mon: mon}, nil
}

// Fits is nil for a guest that this engine can run on this host, else why not.
func (e *Engine) Fits(_ context.Context, spec *engine.Spec) error { return e.mon.fits(spec) }
