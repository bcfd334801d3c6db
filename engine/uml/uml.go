package uml

import (
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/machine"
	"github.com/cleave-project/cleave/keeper"
)

// Options say where an engine lives.
type Options struct {
	// Run is the directory of the guests' runtime directories, of this engine
	// alone.
	Run string
	// LogDir is where a guest's output is kept.
	LogDir func(id string) string
	// Scope tells the daemons of one host apart in names of kernel objects;
	// empty for the default one.
	Scope string
	// Keeper is the parent of the monitors.
	Keeper *keeper.Client
	// AgentBinary is the path of cleave-agent.
	AgentBinary string
	// Log may be nil.
	Log *slog.Logger
}

// Engine runs paravirtual machines. It implements engine.Engine.
type Engine struct {
	*machine.Engine
}

var _ engine.Engine = (*Engine)(nil)

// New opens the engine. Guests that an earlier daemon started live on and
// are in List.
func New(o Options) (*Engine, error) {
	agent, err := filepath.EvalSymlinks(o.AgentBinary)
	if err != nil {
		return nil, fmt.Errorf("find cleave-agent: %w", err)
	}
	if agent, err = filepath.Abs(agent); err != nil {
		return nil, err
	}
	base, err := machine.New(machine.Options{
		Monitor: &monitor{again: agent}, Run: o.Run, LogDir: o.LogDir, Scope: o.Scope,
		Keeper: o.Keeper, AgentBinary: o.AgentBinary, Log: o.Log,
	})
	if err != nil {
		return nil, err
	}
	return &Engine{base}, nil
}
