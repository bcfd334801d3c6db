package vmm

import (
	"context"
	"log/slog"

	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/machine"
	"github.com/cleave-project/cleave/keeper"
)

// Options say where an engine lives; they are those of machine.Options.
type Options struct {
	Run         string
	LogDir      func(id string) string
	Scope       string
	Keeper      *keeper.Client
	AgentBinary string
	Log         *slog.Logger
	// Binary is the path of cleave-vmm.
	Binary string
}

// Engine runs virtual machines by cleave-vmm. It implements engine.Engine,
// engine.Plugger and engine.Grower.
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

// New opens the engine. Guests that an earlier daemon started live on and
// are in List.
func New(opts Options) (*Engine, error) {
	mon := newMonitor(opts.Binary)
	e, err := machine.New(machine.Options{
		Monitor: mon, Run: opts.Run, LogDir: opts.LogDir, Scope: opts.Scope,
		Keeper: opts.Keeper, AgentBinary: opts.AgentBinary, Log: opts.Log,
	})
	if err != nil {
		return nil, err
	}
	return &Engine{Engine: e, mon: mon}, nil
}

// Fits is nil for a guest that this engine can run on this host, else why not.
func (e *Engine) Fits(_ context.Context, spec *engine.Spec) error { return e.mon.fits(spec) }
