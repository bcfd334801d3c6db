package machine

import (
	"context"
	"errors"
	"log/slog"
	"net"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/keeper"
)

// Options say where an engine lives.
type Options struct {
	Monitor Monitor
	// Run is the directory of the guests' runtime directories. No other
	// engine may use it: a guest belongs to the engine in whose directory it
	// has its own.
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

// Engine runs machines by a Monitor. It implements engine.Engine; engines
// embed it.
type Engine struct {
	opts Options
}

var _ engine.Engine = (*Engine)(nil)

var errNotYet = api.Errorf(api.CodeUnsupported, "machines can't be run yet")

// New opens the engine. Guests that an earlier daemon started live on and
// are in List.
func New(opts Options) (*Engine, error) {
	if opts.Monitor == nil {
		return nil, errors.New("an engine of machines needs a monitor")
	}
	return &Engine{opts: opts}, nil
}

// SetKeeper replaces the keeper after the old one went away. Guests that live
// are handed to the new one; ends that nobody saw show in List.
func (e *Engine) SetKeeper(ctx context.Context, k *keeper.Client) error { return errNotYet }

// Destroy removes what the engine keeps on the host beside guests. It is for
// taking a daemon's installation down, before Close.
func (e *Engine) Destroy() {}

// Guest is a guest that runs, for what a monitor can do beyond
// engine.Engine. For one that doesn't the error has the code "conflict".
func (e *Engine) Guest(id string) (*Guest, error) { return nil, errNotYet }

// Name implements engine.Engine.
func (e *Engine) Name() string { return e.opts.Monitor.Name() }

// Kind implements engine.Engine.
func (e *Engine) Kind() api.Kind { return e.opts.Monitor.Kind() }

// Probe implements engine.Engine.
func (e *Engine) Probe(ctx context.Context) (engine.Capabilities, []api.Finding) {
	return e.opts.Monitor.Probe(ctx)
}

// LogDir implements engine.Engine.
func (e *Engine) LogDir(id string) string { return e.opts.LogDir(id) }

// Start implements engine.Engine.
func (e *Engine) Start(ctx context.Context, spec *engine.Spec) (*engine.Guest, error) {
	return nil, errNotYet
}

// Signal implements engine.Engine.
func (e *Engine) Signal(ctx context.Context, id string, signal string) error { return errNotYet }

// Pause implements engine.Engine.
func (e *Engine) Pause(ctx context.Context, id string) error { return errNotYet }

// Resume implements engine.Engine.
func (e *Engine) Resume(ctx context.Context, id string) error { return errNotYet }

// Update implements engine.Engine.
func (e *Engine) Update(ctx context.Context, id string, r api.Resources, root string) error {
	return errNotYet
}

// Stats implements engine.Engine.
func (e *Engine) Stats(ctx context.Context, id string) (api.Stats, error) {
	return api.Stats{}, errNotYet
}

// Agent implements engine.Engine.
func (e *Engine) Agent(ctx context.Context, id string) (net.Conn, error) { return nil, errNotYet }

// Console implements engine.Engine.
func (e *Engine) Console(ctx context.Context, id string, opts engine.ConsoleOptions) (engine.Console, error) {
	return nil, errNotYet
}

// Clean implements engine.Engine.
func (e *Engine) Clean(ctx context.Context, id string) error { return nil }

// Forget implements engine.Engine.
func (e *Engine) Forget(ctx context.Context, id string) error { return nil }

// List implements engine.Engine.
func (e *Engine) List(ctx context.Context) ([]engine.Guest, error) { return nil, nil }

// Exits implements engine.Engine.
func (e *Engine) Exits() <-chan engine.Exit { return nil }

// Close implements engine.Engine. Guests live on.
func (e *Engine) Close() error { return nil }
