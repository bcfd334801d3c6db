package migrate

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// link are the streams of a source that sends what its guest has left behind.
type link struct {
	receiver *receiver
	streams  []*stream

	writing sync.Mutex // of the first stream
	readers sync.WaitGroup
	goAhead chan struct{} // closed when the guest is ours
	synced  chan struct{} // closed when all was sent
	failed  chan struct{} // closed when the streams are no more
	once    sync.Once
	err     error // with failed

	heard    sync.Mutex
	deadline time.Time
}

// wants are parts of volumes that are needed at once.
type wants struct {
	mu    sync.Mutex
	list  []head
	more  chan struct{} // has room for one
	sinks []LaterSink   // that want them
}

// add implements what Await of sinks is given.
func (w *wants) add(volume int, r Range) {
	w.mu.Lock()
	w.list = append(w.list, head{kind: kindWant, volume: uint8(volume), offset: uint64(r.Offset), size: uint64(r.Size)})
	w.mu.Unlock()
	select {
	case w.more <- struct{}{}:
	default:
	}
}

// abandon ends the waiting for what is wanted.
func (w *wants) abandon() {
	for _, s := range w.sinks {
		s.Abandon()
	}
}

func (w *wants) take() []head {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := w.list
	w.list = nil
	return list
}

// follow loads a guest a part of whose volumes comes later, runs it, and takes
// that part, over as many links as it takes.
func (r *receiver) follow(ctx context.Context, state []byte, detach func() bool) error {
	w := &wants{more: make(chan struct{}, 1)}
	ran := false
	defer func() {
		if ran { // the machine alone may, when no processor runs any more
			return
		}
		w.abandon()
		if r.running != nil {
			<-r.running //nolint:errcheck // how it ends is told already: it is over when we are
		}
	}()
	for i, s := range r.sinks {
		later, ok := s.(LaterSink)
		if !ok {
			continue
		}
		if err := later.Await(func(p Range) { w.add(i, p) }); err != nil {
			r.streams[0].abort(err)
			return err
		}
		w.sinks = append(w.sinks, later)
	}
	for _, s := range r.streams {
		s.revive() // those on which no state came; on others nothing is sent yet
	}
	l := r.newLink(r.streams, w)
	if err := l.load(ctx, w, state, detach); err != nil {
		l.abort(err)
		l.close(err)
		return err
	}
	err := l.say(head{kind: kindReady})
	for {
		// From here on the source may have decided without our knowing. It comes
		// back then, since it alone has what is missing.
		if err == nil {
			err = l.serve(ctx, w, &ran)
		}
		if errors.Is(err, errAborted) && !ran {
			l.close(err)
			return err
		}
		if err != nil && ctx.Err() != nil {
			if ran {
				_ = l.say(head{kind: kindRunning}) // what the source has is past
			}
			l.abort(context.Cause(ctx)) // a guest that has ended needs no memory
		}
		l.close(err)
		if err == nil || ctx.Err() != nil {
			return err
		}
		if l, err = r.relink(ctx, w, ran); err != nil {
			return err
		}
	}
}

// load puts the guest together, which may need parts of its memory.
func (l *link) load(ctx context.Context, w *wants, state []byte, detach func() bool) error {
	loaded := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() { // without a source nothing comes
		select {
		case <-l.failed:
			w.abandon()
		case <-ctx.Done():
			w.abandon()
		case <-loaded:
		}
	})
	err := l.receiver.place.Load(state)
	close(loaded)
	watching.Wait()
	select {
	case <-l.failed:
		return errors.Join(l.err, err)
	default:
	}
	if err == nil && !detach() {
		err = ctx.Err()
	}
	return err
}

// serve runs the guest when it is ours, and returns when all of it is here.
func (l *link) serve(ctx context.Context, w *wants, ran *bool) error {
	select {
	case <-l.goAhead:
	case <-l.failed:
		return l.err
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := l.run(ctx, w, ran); err != nil {
		return err
	}
	if err := l.say(head{kind: kindRunning}); err != nil {
		return err
	}
	select {
	case <-l.synced:
	case <-l.failed:
		return l.err
	case <-ctx.Done():
		return ctx.Err()
	}
	for i, s := range l.receiver.sinks {
		if later, ok := s.(LaterSink); ok && len(later.Missing()) > 0 {
			return broken("all of volume %d was sent, and some of it isn't here", i)
		}
	}
	_ = l.say(head{kind: kindWhole}) // it is here, whatever becomes of that
	return nil
}

// run lets the guest run, which may need parts of its memory first: if the link
// breaks in between, the next one has them come.
func (l *link) run(ctx context.Context, w *wants, ran *bool) error {
	r := l.receiver
	if *ran {
		return nil
	}
	if r.running == nil {
		r.running = make(chan error, 1)
		go func() { r.running <- r.place.Run() }()
	}
	var err error
	select {
	case err = <-r.running:
	case <-l.failed:
		return l.err
	case <-ctx.Done():
		w.abandon()
		err = <-r.running
	}
	r.running = nil
	if err != nil {
		l.abort(err)
		return fmt.Errorf("%w: %w", errAborted, err)
	}
	*ran = true
	return nil
}

// newLink begins to read streams, and to write what is wanted.
func (r *receiver) newLink(streams []*stream, w *wants) *link {
	l := &link{receiver: r, streams: streams, goAhead: make(chan struct{}), synced: make(chan struct{}), failed: make(chan struct{})}
	var all sync.WaitGroup
	for i, s := range streams {
		all.Add(1)
		l.readers.Go(func() {
			defer all.Done()
			if err := l.read(s, i == 0); err != nil {
				l.fail(err)
			}
		})
	}
	l.readers.Go(func() {
		all.Wait()
		select {
		case <-l.failed:
		default:
			close(l.synced)
		}
	})
	l.readers.Go(func() { l.ask(w) })
	return l
}

// ask writes what is wanted, until the link ends.
func (l *link) ask(w *wants) {
	for {
		select {
		case <-w.more:
		case <-l.failed:
			return
		}
		for _, h := range w.take() {
			if err := l.say(h); err != nil {
				l.fail(err)
				return
			}
		}
	}
}

// read takes one stream's frames up to its end.
func (l *link) read(s *stream, first bool) error {
	buf := make([]byte, maxData)
	for ours := false; ; {
		if err := l.patience(); err != nil {
			return err
		}
		h, err := s.frame()
		if err != nil {
			return err
		}
		switch h.kind {
		case kindData, kindZero:
			err = l.part(s, &h, buf)
		case kindGo:
			if !first || ours {
				return broken("a guest is handed over where none is due")
			}
			ours = true
			close(l.goAhead)
		case kindSync:
			return nil
		default:
			err = broken("a frame of kind %d behind the guest", h.kind)
		}
		if err != nil {
			return err
		}
	}
}

// part takes what a sink waits for: of others nothing comes any more, since the
// guest may have them.
func (l *link) part(s *stream, h *head, buf []byte) error {
	if int(h.volume) < len(l.receiver.sinks) {
		if _, ok := l.receiver.sinks[h.volume].(LaterSink); !ok {
			return broken("a part of volume %d behind the guest", h.volume)
		}
	}
	if h.kind == kindZero {
		return l.receiver.zero(h)
	}
	return l.receiver.data(s, h, buf)
}

// patience has all streams wait a while longer, if one was heard of: those for
// what is wanted may have nothing to say for long.
func (l *link) patience() error {
	l.heard.Lock()
	defer l.heard.Unlock()
	if now := time.Now(); l.deadline.Sub(now) < stall-time.Second {
		l.deadline = now.Add(stall)
		for _, s := range l.streams {
			if err := s.patience(&s.deaf, s.SetReadDeadline, stall); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *link) say(h head) error {
	l.writing.Lock()
	defer l.writing.Unlock()
	return l.streams[0].send(h, nil)
}

func (l *link) abort(why error) {
	if errors.Is(why, errAborted) {
		return // who has said so needn't hear it
	}
	l.writing.Lock()
	defer l.writing.Unlock()
	l.streams[0].abort(why)
}

// fail has nothing more be heard.
func (l *link) fail(err error) {
	l.once.Do(func() {
		l.err = err
		close(l.failed)
		for _, s := range l.streams {
			s.halt(false) // there may be a last word to say
		}
	})
}

func (l *link) close(err error) {
	l.fail(err)
	for _, s := range l.streams {
		s.Close()
	}
	l.readers.Wait()
}

// relink waits for the source, and tells it what is missing, and whether the
// guest has run.
func (r *receiver) relink(ctx context.Context, w *wants, ran bool) (*link, error) {
	for {
		streams, err := r.again()
		if err != nil && ctx.Err() == nil && !errors.Is(err, net.ErrClosed) {
			select { // of files there may be too many for a moment
			case <-time.After(time.Second):
				continue
			case <-ctx.Done():
			}
		}
		if err != nil {
			return nil, fmt.Errorf("wait for the guest's memory: %w", err)
		}
		w.take() // what is needed is wanted anew
		err = r.tellMissing(streams[0], ran)
		if err == nil {
			return r.newLink(streams, w), nil
		}
		for _, s := range streams {
			s.Close()
		}
	}
}

func (r *receiver) tellMissing(s *stream, ran bool) error {
	for i, sink := range r.sinks {
		later, ok := sink.(LaterSink)
		if !ok {
			continue
		}
		for _, p := range later.Missing() {
			if err := s.put(head{kind: kindLater, volume: uint8(i), offset: uint64(p.Offset), size: uint64(p.Size)}, nil); err != nil {
				return err
			}
		}
	}
	h := head{kind: kindWelcome}
	if ran {
		h.offset = 1
	}
	return s.send(h, nil)
}
