package qemu

import (
	"context"
	"io"
	"log/slog"
	"net"
	"os"

	"github.com/cleave-project/cleave/api"
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
}

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
)

// New opens the engine. Guests that an earlier daemon started live on and
// are in List.
func New(opts Options) (*Engine, error) {
	mon := &monitor{}
	e, err := machine.New(machine.Options{
		Monitor: mon, Run: opts.Run, LogDir: opts.LogDir, Scope: opts.Scope,
		Keeper: opts.Keeper, AgentBinary: opts.AgentBinary, Log: opts.Log,
	})
	if err != nil {
		return nil, err
	}
	return &Engine{Engine: e, mon: mon}, nil
}

// monitor is what QEMU does as a machine.Monitor.
type monitor struct{}

var errNotYet = api.Errorf(api.CodeUnsupported, "QEMU can't be run yet")

func (m *monitor) Name() string   { return "qemu" }
func (m *monitor) Kind() api.Kind { return api.KindVM }
func (m *monitor) Probe(ctx context.Context) (engine.Capabilities, []api.Finding) {
	return engine.Capabilities{Reason: errNotYet}, nil
}
func (m *monitor) Validate(spec *engine.Spec) error { return errNotYet }
func (m *monitor) Command(ctx context.Context, p *machine.Plan) (*machine.Command, error) {
	return nil, errNotYet
}
func (m *monitor) Running(ctx context.Context, g *machine.Guest) error { return errNotYet }
func (m *monitor) Agent(ctx context.Context, g *machine.Guest) (io.ReadWriteCloser, error) {
	return nil, errNotYet
}
func (m *monitor) Pause(ctx context.Context, g *machine.Guest) error       { return errNotYet }
func (m *monitor) Resume(ctx context.Context, g *machine.Guest) error      { return errNotYet }
func (m *monitor) PowerButton(ctx context.Context, g *machine.Guest) error { return errNotYet }
func (m *monitor) Update(ctx context.Context, g *machine.Guest, r api.Resources) error {
	return errNotYet
}
func (m *monitor) Ended(g *machine.Guest) api.ExitStatus { return api.ExitStatus{} }

// VNC implements engine.Display.
func (e *Engine) VNC(ctx context.Context, id string) (net.Conn, error) { return nil, errNotYet }

// Screenshot implements engine.Display.
func (e *Engine) Screenshot(ctx context.Context, id string) ([]byte, error) { return nil, errNotYet }

// AttachDisk implements engine.Plugger.
func (e *Engine) AttachDisk(ctx context.Context, id string, d engine.Disk) error { return errNotYet }

// DetachDisk implements engine.Plugger.
func (e *Engine) DetachDisk(ctx context.Context, id, disk string) error { return errNotYet }

// InsertMedium implements engine.Plugger.
func (e *Engine) InsertMedium(ctx context.Context, id, path string) error { return errNotYet }

// AttachNIC implements engine.Plugger.
func (e *Engine) AttachNIC(ctx context.Context, id string, n engine.NIC, tap *os.File) error {
	return errNotYet
}

// DetachNIC implements engine.Plugger.
func (e *Engine) DetachNIC(ctx context.Context, id, name string) error { return errNotYet }

// Save implements engine.Saver.
func (e *Engine) Save(ctx context.Context, id, path string) error { return errNotYet }
