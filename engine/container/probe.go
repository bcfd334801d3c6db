package container

import (
	"context"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
)

// Probe implements engine.Engine.
func (e *Engine) Probe(ctx context.Context) (engine.Capabilities, []api.Finding) {
	return engine.Capabilities{Available: true, Pause: true, Resize: true, HostPath: true}, nil
}
