package uml

import (
	"context"
	"io"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/machine"
)

// monitor runs linux.uml.
type monitor struct{}

var _ machine.Monitor = (*monitor)(nil)

var errNotYet = api.Errorf(api.CodeUnsupported, "paravirtual machines can't be run yet")

// Name implements machine.Monitor.
func (*monitor) Name() string { return "uml" }

// Kind implements machine.Monitor.
func (*monitor) Kind() api.Kind { return api.KindPVM }

// Probe implements machine.Monitor.
func (*monitor) Probe(ctx context.Context) (engine.Capabilities, []api.Finding) {
	return engine.Capabilities{Reason: errNotYet}, nil
}

// Validate implements machine.Monitor.
func (*monitor) Validate(spec *engine.Spec) error { return errNotYet }

// Command implements machine.Monitor.
func (*monitor) Command(ctx context.Context, p *machine.Plan) (*machine.Command, error) {
	return nil, errNotYet
}

// Running implements machine.Monitor.
func (*monitor) Running(ctx context.Context, g *machine.Guest) error { return errNotYet }

// Agent implements machine.Monitor.
func (*monitor) Agent(ctx context.Context, g *machine.Guest) (io.ReadWriteCloser, error) {
	return nil, errNotYet
}

// Pause implements machine.Monitor.
func (*monitor) Pause(ctx context.Context, g *machine.Guest) error { return errNotYet }

// Resume implements machine.Monitor.
func (*monitor) Resume(ctx context.Context, g *machine.Guest) error { return errNotYet }

// PowerButton implements machine.Monitor.
func (*monitor) PowerButton(ctx context.Context, g *machine.Guest) error { return errNotYet }

// Update implements machine.Monitor.
func (*monitor) Update(ctx context.Context, g *machine.Guest, r api.Resources) error {
	return errNotYet
}

// Ended implements machine.Monitor.
func (*monitor) Ended(g *machine.Guest) api.ExitStatus { return api.ExitStatus{} }
