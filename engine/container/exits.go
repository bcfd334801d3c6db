package container

import (
	"context"
	"fmt"
	"slices"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/keeper"
)

// pending is a guest that Start is working on. Its end belongs to Start
// until Start has returned.
type pending struct {
	ended *keeper.Guest
}

func (e *Engine) begin(id string) (*pending, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.starting[id] != nil {
		return nil, api.Errorf(api.CodeBusy, "start guest %s: it is being started already", id)
	}
	p := &pending{}
	e.starting[id] = p
	return p, nil
}

// finish ends a Start. An end that came meanwhile is delivered now, unless the
// start failed and was undone.
func (e *Engine) finish(id string, ok bool) {
	e.mu.Lock()
	p := e.starting[id]
	delete(e.starting, id)
	e.mu.Unlock()
	if ok && p.ended != nil {
		e.deliver(*p.ended)
	}
}

// SetKeeper replaces the keeper after the old one went away. Guests that live
// are handed to the new one; ends that nobody saw show in List.
func (e *Engine) SetKeeper(ctx context.Context, k *keeper.Client) error {
	watch, unwatch := context.WithCancel(e.ctx)
	ch, err := k.Exits(watch)
	if err != nil {
		unwatch()
		return fmt.Errorf("watch the keeper: %w", err)
	}
	e.mu.Lock()
	e.keeper = k
	if e.unwatch != nil {
		e.unwatch()
	}
	e.unwatch = unwatch
	e.mu.Unlock()
	e.watch.Go(func() { e.watchExits(ch) })
	return e.adopt(ctx, k)
}

// watchExits reads a keeper's ends until it goes away or is replaced.
func (e *Engine) watchExits(ch <-chan keeper.Guest) {
	for g := range ch {
		e.mu.Lock()
		p := e.starting[g.ID]
		if p != nil {
			p.ended = &g
		}
		if w := e.waiting[g.ID]; w != nil {
			close(w)
			delete(e.waiting, g.ID)
		}
		e.mu.Unlock()
		if p == nil {
			e.deliver(g)
		}
	}
}

// expect returns a channel that is closed when the keeper tells of the next
// end of id.
func (e *Engine) expect(id string) <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.waiting[id] == nil {
		e.waiting[id] = make(chan struct{})
	}
	return e.waiting[id]
}

// forget has the keeper drop its record of a guest whose processes are gone,
// as soon as the keeper has seen so itself.
func (e *Engine) forget(ctx context.Context, id string, ended <-chan struct{}) error {
	for {
		k, err := e.client()
		if err != nil {
			return err
		}
		err = k.Forget(ctx, id)
		if err == nil || api.IsCode(err, api.CodeNotFound) {
			e.mu.Lock()
			delete(e.waiting, id)
			e.mu.Unlock()
			return nil
		}
		if !api.IsCode(err, api.CodeConflict) {
			return err
		}
		select {
		case <-ended:
			ended = nil // an end that doesn't let us forget is an error for the context to end
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", err, ctx.Err())
		}
	}
}

// deliver passes an end on. It doesn't block, however late the reader is:
// Clean waits for ends too.
func (e *Engine) deliver(g keeper.Guest) {
	x := engine.Exit{ID: g.ID, Status: e.status(g), Time: g.Ended}
	e.mu.Lock()
	e.queue = append(e.queue, x)
	e.mu.Unlock()
	select {
	case e.queued <- struct{}{}:
	default: // pump has been told already
	}
}

// pump moves ends from the queue to the channel until the engine is closed.
func (e *Engine) pump() {
	defer close(e.exits)
	for {
		e.mu.Lock()
		q := e.queue
		e.queue = nil
		e.mu.Unlock()
		for _, x := range q {
			select {
			case e.exits <- x:
			case <-e.ctx.Done():
				return
			}
		}
		select {
		case <-e.queued:
		case <-e.ctx.Done():
			return
		}
	}
}

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
	if r, err := e.readRecord(g.ID); err == nil && r.System && s.Signal == "SIGINT" {
		s.Code, s.Signal = 0, ""
	}
	return s
}

// adopt hands guests that no keeper knows to k.
func (e *Engine) adopt(ctx context.Context, k *keeper.Client) error {
	known, err := k.List(ctx)
	if err != nil {
		return fmt.Errorf("list the keeper's guests: %w", err)
	}
	rs, err := e.records()
	if err != nil {
		return err
	}
	for id, r := range rs {
		if r == nil || !r.alive() || slices.ContainsFunc(known, func(g keeper.Guest) bool { return g.ID == id }) {
			continue
		}
		if _, err := k.Adopt(ctx, keeper.AdoptRequest{
			ID: id, PID: r.PID, StartTime: r.StartTime, Dir: e.dir(id), LogDir: e.LogDir(id), Terminal: r.Terminal,
		}); err != nil && !api.IsCode(err, api.CodeExists) {
			e.log.Error("adopt a guest", "instance", id, "error", err)
		}
	}
	return nil
}

// List implements engine.Engine.
func (e *Engine) List(ctx context.Context) ([]engine.Guest, error) {
	k, err := e.client()
	if err != nil {
		return nil, err
	}
	known, err := k.List(ctx)
	if err != nil {
		return nil, err
	}
	rs, err := e.records()
	if err != nil {
		return nil, err
	}
	var out []engine.Guest
	for _, g := range known {
		delete(rs, g.ID)
		out = append(out, e.guest(g))
	}
	for id, r := range rs {
		// Directories of Starts in progress have no record, or a keeper's.
		if r == nil {
			continue
		}
		out = append(out, engine.Guest{
			ID: id, PID: r.PID, Started: r.Started, Running: r.alive(),
			Exit: exitIf(!r.alive()), Lost: []string{"exit status"},
		})
	}
	return out, nil
}

func exitIf(dead bool) *api.ExitStatus {
	if !dead {
		return nil
	}
	return &api.ExitStatus{Code: -1}
}

func (e *Engine) guest(g keeper.Guest) engine.Guest {
	out := engine.Guest{ID: g.ID, PID: g.PID, Started: g.Started, Running: !g.Exited, Lost: g.Lost}
	if g.Exited {
		s := e.status(g)
		out.Exit, out.Ended = &s, g.Ended
	}
	return out
}
