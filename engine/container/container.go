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
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/internal/cgroup"
	"github.com/cleave-project/cleave/engine/internal/guests"
	"github.com/cleave-project/cleave/keeper"
)

// Engine builds containers. It implements engine.Engine.
type Engine struct {
	opts    engine.Options
	log     *slog.Logger
	book    *guests.Book
	cgroups *cgroup.Tree
	agent   *os.File // cleave-agent in a sealed memfd
	images  *images
	feature features
	filters filters

	closed sync.Once
	mu     sync.Mutex
	staged bool // the stage for read-only mounts is open
}

var _ engine.Engine = (*Engine)(nil)

// New opens the engine. Guests that an earlier daemon started live on and
// are in List.
func New(opts engine.Options) (*Engine, error) {
	closeStage(filepath.Join(opts.Run, stageName)) // of a daemon that died
	tree, err := cgroup.Open(opts.Scope, cgroup.GuestDevices)
	if err != nil {
		return nil, fmt.Errorf("open cgroups: %w", err)
	}
	agent, err := guests.SealedCopy(opts.AgentBinary)
	if err != nil {
		tree.Close()
		return nil, err
	}
	e := &Engine{
		opts: opts, log: cmp.Or(opts.Log, slog.New(slog.DiscardHandler)),
		cgroups: tree, agent: agent, feature: probeFeatures(),
	}
	e.images = newImages(&e.feature)
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

// Name implements engine.Engine.
func (e *Engine) Name() string { return "container" }

// Kind implements engine.Engine.
func (e *Engine) Kind() api.Kind { return api.KindContainer }

// LogDir implements engine.Engine.
func (e *Engine) LogDir(id string) string { return e.opts.LogDir(id) }

// Exits implements engine.Engine.
func (e *Engine) Exits() <-chan engine.Exit { return e.book.Exits() }

// SetKeeper replaces the keeper after the old one went away. Guests that live
// are handed to the new one; ends that nobody saw show in List.
func (e *Engine) SetKeeper(ctx context.Context, k *keeper.Client) error {
	return e.book.SetKeeper(ctx, k)
}

// List implements engine.Engine.
func (e *Engine) List(ctx context.Context) ([]engine.Guest, error) { return e.book.List(ctx) }

// Close implements engine.Engine. Guests live on.
func (e *Engine) Close() error {
	e.closed.Do(func() {
		e.book.Close()
		if e.staged {
			closeStage(filepath.Join(e.opts.Run, stageName))
		}
		e.images.close()
		e.agent.Close()
		e.cgroups.Close()
	})
	return nil
}

// Destroy removes what the engine keeps on the host beside guests: its empty
// cgroups. It is for taking a daemon's installation down, before Close.
func (e *Engine) Destroy() { e.cgroups.Destroy() }

// dir is a guest's runtime directory.
func (e *Engine) dir(id string) string { return e.book.Dir(id) }

// status is how a guest ended. The agent passes a signal on as 128 plus its
// number, so that running out of memory shows as 137 with a kill on record. An
// init that powers its system off is ended by the kernel with SIGINT
// (reboot(2), "Behavior inside PID namespaces"); with SIGHUP it has asked for
// a reboot, which is left as it is.
func (e *Engine) status(g keeper.Guest) api.ExitStatus {
	s := g.Exit()
	if s.Code == 137 && e.cgroups.Group(g.ID).OOMKills() > 0 {
		s.OOMKilled = true
	}
	if r, err := e.book.Read(g.ID); err == nil && r.System && s.Signal == "SIGINT" {
		s.Code, s.Signal = 0, ""
	}
	return s
}
