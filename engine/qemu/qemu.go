package qemu

import (
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/machine"
)

// Engine runs virtual machines by QEMU. It implements engine.Engine,
// engine.Display, engine.Plugger and engine.Saver.
type Engine struct {
	*machine.Engine
	mon *monitor
}

var (
	_ engine.Engine   = (*Engine)(nil)
	_ engine.Display  = (*Engine)(nil)
	_ engine.Plugger  = (*Engine)(nil)
	_ engine.Saver    = (*Engine)(nil)
	_ machine.Monitor = (*monitor)(nil)
	_ machine.Teller  = (*monitor)(nil)
)

// New opens the engine. Guests that an earlier daemon started live on and
// are in List.
func New(opts engine.Options) (*Engine, error) {
	mon := newMonitor()
	e, err := machine.New(mon, opts)
	if err != nil {
		return nil, err
	}
	return &Engine{Engine: e, mon: mon}, nil
}

// Close implements engine.Engine.
func (e *Engine) Close() error {
	err := e.Engine.Close()
	e.mon.close()
	return err
}
