package uml

import (
	"fmt"
	"path/filepath"

	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/machine"
)

// Engine runs paravirtual machines. It implements engine.Engine.
type Engine struct {
	*machine.Engine
}

var _ engine.Engine = (*Engine)(nil)

// New opens the engine. Guests that an earlier daemon started live on and
// are in List.
func New(opts engine.Options) (*Engine, error) {
	agent, err := filepath.EvalSymlinks(opts.AgentBinary)
	if err != nil {
		return nil, fmt.Errorf("find cleave-agent: %w", err)
	}
	if agent, err = filepath.Abs(agent); err != nil {
		return nil, err
	}
	base, err := machine.New(&monitor{again: agent}, opts)
	if err != nil {
		return nil, err
	}
	return &Engine{base}, nil
}
