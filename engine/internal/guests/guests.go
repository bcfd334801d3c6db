// Package guests is the book that an engine keeps of its guests, which are
// processes of the keeper: what was started, what lives, how it ended. It is
// the same for every kind of wall.
//
// A guest belongs to the engine in whose directory it has its runtime
// directory; the keeper's other guests are other engines'. The record in that
// directory lets a later daemon, or a later keeper, find the guest again.
//
// All methods may be called from any goroutine.
package guests

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"sync"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/keeper"
)

// IDPattern is what an id may be: it names files and cgroups.
var IDPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

// Options of a Book.
type Options struct {
	// Run is the directory of the runtime directories. It is made if absent.
	Run    string
	LogDir func(id string) string
	Log    *slog.Logger
	// Status is how a guest ended that the keeper has seen end.
	Status func(g keeper.Guest) api.ExitStatus
}

// Book knows an engine's guests.
type Book struct {
	opts Options

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	watch  sync.WaitGroup // the goroutines that pass exits on
	exits  chan engine.Exit
	queued chan struct{} // tells pump of new exits

	mu       sync.Mutex
	queue    []engine.Exit
	keeper   *keeper.Client
	unwatch  context.CancelFunc       // ends the watch of the present keeper
	own      map[string]process       // guests whose end is to be told
	starting map[string]*Start        // guests that are being started
	waiting  map[string]chan struct{} // closed when the keeper tells of the guest's end
}

// Open opens the book of the guests in a directory.
func Open(opts Options) (*Book, error) {
	if err := os.MkdirAll(opts.Run, 0o711); err != nil {
		return nil, fmt.Errorf("make runtime directory: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	b := &Book{
		opts: opts, ctx: ctx, cancel: cancel,
		exits: make(chan engine.Exit), queued: make(chan struct{}, 1),
		own: map[string]process{}, starting: map[string]*Start{}, waiting: map[string]chan struct{}{},
	}
	rs, err := b.records()
	if err != nil {
		cancel()
		return nil, err
	}
	for id, r := range rs {
		b.own[id] = r.process()
	}
	b.watch.Go(b.pump)
	return b, nil
}

// Close ends what the book does; guests live on.
func (b *Book) Close() {
	b.cancel()
	b.watch.Wait()
}

// Dir is a guest's runtime directory.
func (b *Book) Dir(id string) string { return filepath.Join(b.opts.Run, id) }

// Exits delivers every end once; Close closes it.
func (b *Book) Exits() <-chan engine.Exit { return b.exits }

// Keeper is the present keeper.
func (b *Book) Keeper() (*keeper.Client, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.keeper == nil {
		return nil, api.Errorf(api.CodeUnavailable, "the keeper, which starts and holds guests, can't be reached").
			WithHint("try again in a moment; see the daemon's log if it stays so")
	}
	return b.keeper, nil
}

// SetKeeper replaces the keeper after the old one went away. Guests that live
// are handed to the new one; ends that nobody saw show in List.
func (b *Book) SetKeeper(ctx context.Context, k *keeper.Client) error {
	watch, unwatch := context.WithCancel(b.ctx)
	ch, err := k.Exits(watch)
	if err != nil {
		unwatch()
		return fmt.Errorf("watch the keeper: %w", err)
	}
	b.mu.Lock()
	b.keeper = k
	if b.unwatch != nil {
		b.unwatch()
	}
	b.unwatch = unwatch
	b.mu.Unlock()
	b.watch.Go(func() { b.watchExits(ch) })
	return b.adopt(ctx, k)
}

// adopt hands guests that no keeper knows to k.
func (b *Book) adopt(ctx context.Context, k *keeper.Client) error {
	known, err := k.List(ctx)
	if err != nil {
		return fmt.Errorf("list the keeper's guests: %w", err)
	}
	rs, err := b.records()
	if err != nil {
		return err
	}
	for _, g := range known {
		delete(rs, g.ID)
	}
	for id, r := range rs {
		if r == nil || !r.Alive() {
			continue
		}
		if _, err := k.Adopt(ctx, keeper.AdoptRequest{
			ID: id, PID: r.PID, StartTime: r.StartTime, Dir: b.Dir(id), LogDir: b.opts.LogDir(id), Terminal: r.Terminal,
		}); err != nil && !api.IsCode(err, api.CodeExists) {
			b.opts.Log.Error("adopt a guest", "instance", id, "error", err)
		}
	}
	return nil
}

// List finds the guests that exist, whoever started them.
func (b *Book) List(ctx context.Context) ([]engine.Guest, error) {
	k, err := b.Keeper()
	if err != nil {
		return nil, err
	}
	known, err := k.List(ctx)
	if err != nil {
		return nil, err
	}
	rs, err := b.records()
	if err != nil {
		return nil, err
	}
	var out []engine.Guest
	for _, g := range known {
		if _, ours := rs[g.ID]; !ours {
			continue
		}
		delete(rs, g.ID)
		out = append(out, b.guest(g))
	}
	for id, r := range rs {
		// Directories of Starts in progress have no record, or a keeper's.
		if r == nil {
			continue
		}
		out = append(out, lost(id, r))
	}
	return out, nil
}

// lost is a guest that the keeper doesn't know.
func lost(id string, r *Record) engine.Guest {
	g := engine.Guest{ID: id, PID: r.PID, Started: r.Started, Running: r.Alive(), Lost: []string{"exit status"}}
	if !g.Running {
		g.Exit = &api.ExitStatus{Code: -1}
	}
	return g
}

func (b *Book) guest(g keeper.Guest) engine.Guest {
	out := engine.Guest{ID: g.ID, PID: g.PID, Started: g.Started, Running: !g.Exited, Lost: g.Lost}
	if g.Exited {
		s := b.opts.Status(g)
		out.Exit, out.Ended = &s, g.Ended
	}
	return out
}
