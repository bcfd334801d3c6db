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
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/internal/cgroup"
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
	opts    Options
	log     *slog.Logger
	cgroups *cgroup.Tree
	agent   *os.File // cleave-agent in a sealed memfd
	images  *images
	feature features
	filters filters

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	watch  sync.WaitGroup // the goroutines that pass exits on
	exits  chan engine.Exit
	queued chan struct{} // tells pump of new exits
	closed sync.Once

	mu       sync.Mutex
	queue    []engine.Exit
	staged   bool // the stage for read-only mounts is open
	keeper   *keeper.Client
	starting map[string]*pending      // guests that Start is working on
	waiting  map[string]chan struct{} // closed when the keeper tells of the guest's end
	unwatch  context.CancelFunc       // ends the watch of the present keeper
}

var _ engine.Engine = (*Engine)(nil)

// New opens the engine. Guests that an earlier daemon started live on and
// are in List.
func New(opts Options) (*Engine, error) {
	if err := os.MkdirAll(opts.Run, 0o711); err != nil {
		return nil, fmt.Errorf("make runtime directory: %w", err)
	}
	closeStage(filepath.Join(opts.Run, stageName)) // of a daemon that died
	parent := "cleave"
	if opts.Scope != "" {
		parent += "-" + opts.Scope
	}
	tree, err := cgroup.Open(parent)
	if err != nil {
		return nil, fmt.Errorf("open cgroups: %w", err)
	}
	agent, err := sealedCopy(opts.AgentBinary)
	if err != nil {
		tree.Close()
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	e := &Engine{
		opts: opts, log: cmp.Or(opts.Log, slog.New(slog.DiscardHandler)),
		cgroups: tree, agent: agent, feature: probeFeatures(),
		ctx: ctx, cancel: cancel,
		exits: make(chan engine.Exit), queued: make(chan struct{}, 1), starting: map[string]*pending{}, waiting: map[string]chan struct{}{},
	}
	e.images = newImages(&e.feature)
	e.watch.Go(e.pump)
	if opts.Keeper != nil {
		if err := e.SetKeeper(ctx, opts.Keeper); err != nil {
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
func (e *Engine) Exits() <-chan engine.Exit { return e.exits }

// Close implements engine.Engine. Guests live on.
func (e *Engine) Close() error {
	e.closed.Do(func() {
		e.cancel()
		e.watch.Wait()
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
func (e *Engine) dir(id string) string { return filepath.Join(e.opts.Run, id) }

// client is the present keeper.
func (e *Engine) client() (*keeper.Client, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.keeper == nil {
		return nil, api.Errorf(api.CodeUnavailable, "the keeper, which starts and holds guests, can't be reached").
			WithHint("try again in a moment; see the daemon's log if it stays so")
	}
	return e.keeper, nil
}

// sealedCopy copies a program to a memfd that nobody can write to any more:
// a guest that gets hold of its agent's executable can read it, and no more
// (CVE-2019-5736).
func sealedCopy(path string) (*os.File, error) {
	src, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open the agent: %w", err)
	}
	defer src.Close()
	// MFD_EXEC is refused by kernels before 6.3, which take memfds for
	// executable anyway.
	flags := unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate("cleave-agent", flags|unix.MFD_EXEC)
	if err == unix.EINVAL {
		fd, err = unix.MemfdCreate("cleave-agent", flags)
	}
	if err != nil {
		return nil, fmt.Errorf("copy the agent to memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), "cleave-agent")
	if _, err = io.Copy(f, src); err == nil {
		if err = f.Chmod(0o555); err == nil {
			_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("copy the agent to memory: %w", err)
	}
	return f, nil
}
