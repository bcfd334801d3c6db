package guests

import (
	"context"
	"fmt"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/keeper"
)

// Start is a guest that is being started. Its end belongs to whoever starts
// it until Finish.
type Start struct {
	b  *Book
	id string
	// early are ends that came before the guest's process was on record: its
	// own, or one of the same id before, which the keeper told of late.
	early []keeper.Guest
	ended *keeper.Guest
	over  chan struct{} // closed when ended is set
}

// Begin begins a start, of which there is one at a time for each id, and none
// for a guest that lives.
func (b *Book) Begin(id string) (*Start, error) {
	if r, err := b.Read(id); err == nil && r.Alive() {
		return nil, api.Errorf(api.CodeConflict, "start guest %s: it is running already", id)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.starting[id] != nil {
		return nil, api.Errorf(api.CodeBusy, "start guest %s: it is being started already", id)
	}
	s := &Start{b: b, id: id, over: make(chan struct{})}
	b.starting[id] = s
	b.own[id] = process{}
	return s, nil
}

// Ended is closed when the guest has ended, once it is on record (Write).
func (s *Start) Ended() <-chan struct{} { return s.over }

// end takes an end for the guest's if it is; with Book.mu held.
func (s *Start) end(g keeper.Guest) {
	switch p := s.b.own[s.id]; {
	case p.pid == 0:
		s.early = append(s.early, g)
	case p.is(g) && s.ended == nil:
		s.ended = &g
		close(s.over)
	}
}

// Finish ends a start. An end that came meanwhile is delivered now, unless
// the start failed and was undone.
func (s *Start) Finish(ok bool) {
	s.b.mu.Lock()
	delete(s.b.starting, s.id)
	if !ok || s.ended != nil {
		delete(s.b.own, s.id)
	}
	s.b.mu.Unlock()
	if ok && s.ended != nil {
		s.b.deliver(*s.ended)
	}
}

// watchExits reads a keeper's ends until it goes away or is replaced.
func (b *Book) watchExits(ch <-chan keeper.Guest) {
	for g := range ch {
		b.mu.Lock()
		was, ours := b.own[g.ID]
		ours = ours && was.is(g)
		s := b.starting[g.ID]
		switch {
		case !ours: // another engine's, or one that was cleaned before
		case s != nil:
			s.end(g)
		default:
			delete(b.own, g.ID)
		}
		if w := b.waiting[g.ID]; w != nil {
			close(w)
			delete(b.waiting, g.ID)
		}
		b.mu.Unlock()
		if ours && s == nil {
			b.deliver(g)
		}
	}
}

// Expect returns a channel that is closed when the keeper tells of the next
// end of id.
func (b *Book) Expect(id string) <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.waiting[id] == nil {
		b.waiting[id] = make(chan struct{})
	}
	return b.waiting[id]
}

// Forget has the keeper drop its record of a guest whose processes are gone,
// as soon as the keeper has seen so itself; ended is what Expect said before
// the guest was killed.
func (b *Book) Forget(ctx context.Context, id string, ended <-chan struct{}) error {
	for {
		k, err := b.Keeper()
		if err != nil {
			return err
		}
		err = k.Forget(ctx, id)
		if err == nil || api.IsCode(err, api.CodeNotFound) {
			b.mu.Lock()
			delete(b.waiting, id)
			b.mu.Unlock()
			return nil
		}
		if !api.IsCode(err, api.CodeConflict) {
			return err
		}
		select {
		case <-ended:
			// Perhaps of an earlier guest of that id; the next one is waited for
			// before the keeper is asked again.
			ended = b.Expect(id)
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", err, ctx.Err())
		}
	}
}

// deliver passes an end on. It doesn't block, however late the reader is:
// who cleans up waits for ends too.
func (b *Book) deliver(g keeper.Guest) {
	x := engine.Exit{ID: g.ID, Status: b.opts.Status(g), Time: g.Ended}
	b.mu.Lock()
	b.queue = append(b.queue, x)
	b.mu.Unlock()
	select {
	case b.queued <- struct{}{}:
	default: // pump has been told already
	}
}

// pump moves ends from the queue to the channel until the book is closed.
func (b *Book) pump() {
	defer close(b.exits)
	for {
		b.mu.Lock()
		q := b.queue
		b.queue = nil
		b.mu.Unlock()
		for _, x := range q {
			select {
			case b.exits <- x:
			case <-b.ctx.Done():
				return
			}
		}
		select {
		case <-b.queued:
		case <-b.ctx.Done():
			return
		}
	}
}
