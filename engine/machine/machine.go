package machine

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/internal/cgroup"
	"github.com/cleave-project/cleave/engine/internal/guests"
	"github.com/cleave-project/cleave/keeper"
)

// Engine runs machines by a Monitor. It implements engine.Engine and
// engine.Inspector; engines embed it.
type Engine struct {
	opts    engine.Options
	monitor Monitor
	log     *slog.Logger
	book    *guests.Book
	cgroups *cgroup.Tree
	agent   *os.File // cleave-agent in a sealed memfd
	closed  sync.Once

	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	closing sync.WaitGroup // sessions that are being ended

	mu    sync.Mutex
	lines map[string]*line // to the guests' agents
}

var (
	_ engine.Engine    = (*Engine)(nil)
	_ engine.Inspector = (*Engine)(nil)
)

// New opens the engine. Guests that an earlier daemon started live on and
// are in List.
func New(m Monitor, opts engine.Options) (*Engine, error) {
	tree, err := cgroup.Open(opts.Scope, cgroup.MonitorDevices)
	if err != nil {
		return nil, fmt.Errorf("open cgroups: %w", err)
	}
	agent, err := guests.SealedCopy(opts.AgentBinary)
	if err != nil {
		tree.Close()
		return nil, err
	}
	e := &Engine{
		opts: opts, monitor: m, log: cmp.Or(opts.Log, slog.New(slog.DiscardHandler)),
		cgroups: tree, agent: agent, lines: map[string]*line{},
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	e.book, err = guests.Open(guests.Options{Run: opts.Run, LogDir: opts.LogDir, Log: e.log, Status: e.status})
	if err != nil {
		agent.Close()
		tree.Close()
		return nil, err
	}
	if opts.Keeper != nil {
		if err := e.SetKeeper(context.Background(), opts.Keeper); err != nil {
			e.Close()
			return nil, err
		}
	}
	return e, nil
}

// SetKeeper replaces the keeper after the old one went away. Guests that live
// are handed to the new one; ends that nobody saw show in List.
func (e *Engine) SetKeeper(ctx context.Context, k *keeper.Client) error {
	return e.book.SetKeeper(ctx, k)
}

// Destroy removes what the engine keeps on the host beside guests. It is for
// taking a daemon's installation down, before Close.
func (e *Engine) Destroy() { e.cgroups.Destroy() }

// Name implements engine.Engine.
func (e *Engine) Name() string { return e.monitor.Name() }

// Kind implements engine.Engine.
func (e *Engine) Kind() api.Kind { return e.monitor.Kind() }

// Probe implements engine.Engine.
func (e *Engine) Probe(ctx context.Context) (engine.Capabilities, []api.Finding) {
	caps, findings := e.monitor.Probe(ctx)
	if caps.Available && !caps.WriteLimits {
		f := api.Finding{Area: string(e.Kind()), Name: "limits of disk writes", State: "ok"}
		if caps.WriteLimits = e.pacesWrites(); !caps.WriteLimits {
			f.State, f.Detail, f.Remedy = "missing", "cgroup version 1 doesn't know who writes what comes from the page cache", pacesRemedy
		}
		findings = append(findings, f)
	}
	return caps, findings
}

const pacesRemedy = "boot with cgroup version 2 (systemd.unified_cgroup_hierarchy=1)"

// pacesWrites tells whether the cgroup limits what a monitor writes. That is in
// the host's page cache first, and with version 1 it is the kernel that writes
// it to the disk, not the guest (cgroup-v2.rst, "Writeback").
func (e *Engine) pacesWrites() bool { return e.cgroups.Where("io") == "v2" }

// canPace refuses limits that would not hold.
func (e *Engine) canPace(rec guests.Record, r api.Resources) error {
	if r.DiskWrite == 0 && r.DiskWriteO == 0 || rec.Machine.Paced || e.pacesWrites() {
		return nil
	}
	return api.Errorf(api.CodeUnsupported, "guest %s: this host can't limit the disk writes of kind %s: it has cgroup version 1", rec.ID, e.Kind()).
		WithField("spec.resources.diskWrite").WithHint("use kind vm or container, or %s", pacesRemedy)
}

// LogDir implements engine.Engine.
func (e *Engine) LogDir(id string) string { return e.opts.LogDir(id) }

// List implements engine.Engine.
func (e *Engine) List(ctx context.Context) ([]engine.Guest, error) {
	list, err := e.book.List(ctx)
	for i, g := range list {
		if r, err := e.book.Read(g.ID); err == nil && r.Machine != nil {
			list[i].Upkeep = r.Machine.Maintenance
		}
		// Nobody saw the monitor's process end, but the guest has said how it
		// did, perhaps.
		if !g.Running && g.Exit != nil && g.Exit.Code == -1 {
			if s := e.told(g.ID, *g.Exit); s.Reason != "" {
				list[i].Exit, list[i].Lost = &s, nil
			}
		}
	}
	return list, err
}

// Exits implements engine.Engine.
func (e *Engine) Exits() <-chan engine.Exit { return e.book.Exits() }

// Close implements engine.Engine. Guests live on.
func (e *Engine) Close() error {
	e.closed.Do(func() {
		e.cancel()
		e.book.Close()
		e.hangUp()
		e.agent.Close()
		e.cgroups.Close()
	})
	return nil
}

// Guest is a guest that runs, for what a monitor can do beyond
// engine.Engine. For one that doesn't the error has the code "conflict".
func (e *Engine) Guest(id string) (*Guest, error) {
	g, _, err := e.find(id)
	return g, err
}

// find is Guest, with the guest's record.
func (e *Engine) find(id string) (*Guest, guests.Record, error) {
	r, err := e.book.Read(id)
	if err != nil || r.Machine == nil || !r.Alive() {
		return nil, r, notRunning(id)
	}
	return e.guest(r), r, nil
}

func (e *Engine) guest(r guests.Record) *Guest {
	return &Guest{ID: r.ID, Dir: e.book.Dir(r.ID), PID: r.PID, Firmware: r.Machine.Firmware, System: r.System, Memory: api.Bytes(r.Machine.Memory), Started: r.Started}
}

func notRunning(id string) error {
	return api.Errorf(api.CodeConflict, "guest %s is not running", id)
}
