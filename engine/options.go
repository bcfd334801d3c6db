package engine

import (
	"log/slog"

	"github.com/cleave-project/cleave/keeper"
)

// Options say where an engine lives.
type Options struct {
	// Run is the directory of the guests' runtime directories. No other
	// engine may use it: a guest belongs to the engine in whose directory it
	// has its own.
	Run string
	// LogDir is where a guest's output is kept.
	LogDir func(id string) string
	// Scope tells the daemons of one host apart in names of kernel objects;
	// empty for the default one.
	Scope string
	// Keeper is the parent of the guests, or of their monitors.
	Keeper *keeper.Client
	// AgentBinary is the path of cleave-agent.
	AgentBinary string
	// Log may be nil.
	Log *slog.Logger
}
