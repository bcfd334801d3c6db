// Package container is the engine of OS-level guests: processes of the
// host's kernel behind namespaces, an id range of their own, a cgroup, a
// small capability set and a system call filter.
//
// What a guest may see is prepared by the host as detached mounts and handed
// over by descriptor; package setup builds the wall with them from inside,
// before any byte of the image is executed or trusted. No path is resolved
// by the host inside a tree that a guest can write.
//
// A guest's runtime directory RUN/ID (mode 0700) holds its agent's socket,
// its standard streams and a record of what was started, so that a new
// daemon, or a new keeper, finds it again.
package container

import (
	"context"
	"log/slog"
	"net"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/keeper"
)

// Options say where an engine lives.
type Options struct {
	// Run is the directory of the guests' runtime directories.
	Run string
	// LogDir is where a guest's output is kept.
	LogDir func(id string) string
	// Scope tells the daemons of one host apart in names of kernel objects;
	// empty for the default one.
	Scope string
	// Keeper is the parent of the guests.
	Keeper *keeper.Client
	// AgentBinary is the path of cleave-agent.
	AgentBinary string
	// Log may be nil.
	Log *slog.Logger
}

// Engine builds containers. It implements engine.Engine.
type Engine struct {
	opts Options
}

var _ engine.Engine = (*Engine)(nil)

// New opens the engine: guests that an earlier daemon started are found, and
// what was left half made is removed.
func New(opts Options) (*Engine, error) { return &Engine{opts: opts}, nil }

// SetKeeper replaces the keeper after the old one went away. Guests that
// live are handed to the new one.
func (e *Engine) SetKeeper(ctx context.Context, k *keeper.Client) error { return errBuilding }

var errBuilding = api.Errorf(api.CodeUnsupported, "the container engine is not built yet")

// Name implements engine.Engine.
func (e *Engine) Name() string { return "container" }

// Kind implements engine.Engine.
func (e *Engine) Kind() api.Kind { return api.KindContainer }

func (e *Engine) Probe(ctx context.Context) (engine.Capabilities, []api.Finding) {
	return engine.Capabilities{Reason: errBuilding}, nil
}
func (e *Engine) Start(ctx context.Context, spec *engine.Spec) (*engine.Guest, error) {
	return nil, errBuilding
}
func (e *Engine) Signal(ctx context.Context, id string, signal string) error { return errBuilding }
func (e *Engine) Pause(ctx context.Context, id string) error                 { return errBuilding }
func (e *Engine) Resume(ctx context.Context, id string) error                { return errBuilding }
func (e *Engine) Update(ctx context.Context, id string, r api.Resources, root string) error {
	return errBuilding
}
func (e *Engine) Stats(ctx context.Context, id string) (api.Stats, error) {
	return api.Stats{}, errBuilding
}
func (e *Engine) Agent(ctx context.Context, id string) (net.Conn, error) { return nil, errBuilding }
func (e *Engine) Console(ctx context.Context, id string, opts engine.ConsoleOptions) (engine.Console, error) {
	return nil, errBuilding
}
func (e *Engine) LogDir(id string) string                          { return e.opts.LogDir(id) }
func (e *Engine) Clean(ctx context.Context, id string) error       { return errBuilding }
func (e *Engine) Forget(ctx context.Context, id string) error      { return errBuilding }
func (e *Engine) List(ctx context.Context) ([]engine.Guest, error) { return nil, errBuilding }
func (e *Engine) Exits() <-chan engine.Exit                        { return nil }
func (e *Engine) Close() error                                     { return nil }
