package migrate

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
)

// Receive takes a guest from connections of a listener, which it closes,
// until all of it is here or the source gives up. Connections that can't be the
// source's are dropped, and others waited for. Without an error the guest
// runs; with ErrUndecided it is loaded, and place.Run not called; with any
// other it is not here, or lost if it has run: its memory doesn't follow any
// more, since ctx has ended.
func Receive(ctx context.Context, l Listener, place Place, id *Identity) error {
	defer l.Close()
	var config *tls.Config
	if id != nil {
		var err error
		if config, err = id.server(); err != nil {
			return err
		}
	}
	first, streams, err := gather(ctx, l, config, "")
	if err != nil {
		return fmt.Errorf("wait for a guest: %w", errors.Join(err, context.Cause(ctx)))
	}
	r := &receiver{streams: streams, place: place, session: first.Session}
	r.again = func() ([]*stream, error) {
		_, streams, err := gather(ctx, l, config, r.session)
		return streams, err
	}
	if !slices.ContainsFunc(first.Volumes, func(v Info) bool { return v.Later }) {
		l.Close()
	}
	stop := context.AfterFunc(ctx, r.close)
	defer stop()
	defer r.close()
	if err := r.receive(ctx, first, stop); err != nil {
		return fmt.Errorf("receive a guest: %w", errors.Join(err, context.Cause(ctx)))
	}
	return nil
}

// receiver is a migration at its destination.
type receiver struct {
	streams []*stream
	place   Place
	sinks   []Sink
	session string
	// mayFollow is, by sink, that the source has said so.
	mayFollow []bool
	running   chan error                // place.Run's, from its beginning to its end
	again     func() ([]*stream, error) // waits until the source comes back
	// later is, of the sinks that may be filled when the guest runs, whether
	// one will.
	later atomic.Bool
}

func (r *receiver) close() {
	for _, s := range r.streams {
		s.Close()
	}
}

// receive is the whole of it, from the hello that describes the guest.
func (r *receiver) receive(ctx context.Context, first *hello, detach func() bool) error {
	control := r.streams[0]
	state, err := r.collect(first)
	if err == nil && r.later.Load() {
		return r.follow(ctx, state, detach)
	}
	if err == nil {
		err = r.place.Load(state)
	}
	if err != nil {
		// Who has said that it gave up needn't hear it.
		if !errors.Is(err, errAborted) {
			control.abort(err)
		}
		return err
	}
	if !detach() {
		control.abort(ctx.Err())
		return ctx.Err()
	}
	// From here on the source may have decided without our knowing.
	if err := control.send(head{kind: kindReady}, nil); err != nil {
		return fmt.Errorf("%w: %w", ErrUndecided, err)
	}
	stop := context.AfterFunc(ctx, func() { control.halt(false) })
	defer stop()
	switch err := control.expect(kindGo, 0); {
	case errors.Is(err, errAborted):
		return err
	case err != nil && ctx.Err() != nil:
		control.abort(context.Cause(ctx)) // what was decided without us is void
		return err
	case err != nil:
		return fmt.Errorf("%w: %w", ErrUndecided, err)
	}
	if err := r.place.Run(); err != nil {
		control.abort(err)
		return err
	}
	_ = control.send(head{kind: kindRunning}, nil) // the guest is here, whatever becomes of that
	return nil
}

// collect receives volumes, or what of them doesn't come later, and the state.
func (r *receiver) collect(first *hello) (state []byte, err error) {
	if r.sinks, err = r.place.Prepare(first.Guest, first.Volumes); err != nil {
		return nil, err
	}
	if len(r.sinks) != len(first.Volumes) {
		return nil, fmt.Errorf("%d volumes where there is room for %d", len(first.Volumes), len(r.sinks))
	}
	blank := uint64(0)
	for i, s := range r.sinks {
		if s.Size() != first.Volumes[i].Size {
			return nil, fmt.Errorf("volume %q has %d bytes, and there is room for %d", first.Volumes[i].Name, first.Volumes[i].Size, s.Size())
		}
		_, ok := s.(LaterSink)
		if r.mayFollow = append(r.mayFollow, first.Volumes[i].Later); first.Volumes[i].Later && !ok {
			return nil, fmt.Errorf("volume %q can't come when the guest runs already", first.Volumes[i].Name)
		}
		if s.Blank() {
			blank |= 1 << i
		}
	}
	if err := r.streams[0].send(head{kind: kindWelcome, offset: blank}, nil); err != nil {
		return nil, err
	}
	return r.rounds()
}

// rounds takes rounds until the state comes.
func (r *receiver) rounds() (state []byte, err error) {
	for round := uint64(0); ; round++ {
		var wg sync.WaitGroup
		errs := make([]error, len(r.streams))
		for i, s := range r.streams {
			wg.Go(func() {
				var b []byte
				if b, errs[i] = r.round(s, i == 0, round); errs[i] != nil && !s.halted() {
					for _, other := range r.streams {
						other.halt(false)
					}
				}
				if b != nil {
					state = b
					for _, other := range r.streams[1:] {
						other.halt(false)
					}
				}
			})
		}
		wg.Wait()
		if state != nil {
			return state, nil
		}
		if err := pick(errs); err != nil {
			return nil, err
		}
		for _, s := range r.sinks {
			if err := s.Flush(); err != nil {
				return nil, errors.Join(errPlace, err)
			}
		}
		if err := r.streams[0].send(head{kind: kindSynced, offset: round}, nil); err != nil {
			return nil, err
		}
	}
}

// pick finds the error that says most: an abort, a broken rule, else the
// first.
func pick(errs []error) error {
	for _, kind := range []error{errAborted, errProtocol} {
		for _, err := range errs {
			if errors.Is(err, kind) {
				return err
			}
		}
	}
	for _, err := range errs {
		if err != nil && !errors.Is(err, errPast) && !errors.Is(err, net.ErrClosed) {
			return err
		}
	}
	return errors.Join(errs...)
}

// round takes one stream's frames up to the end of a round, or the state,
// which only the first stream may have, and only instead of a round.
func (r *receiver) round(s *stream, first bool, round uint64) (state []byte, err error) {
	buf := make([]byte, maxData)
	for begun := false; ; begun = true {
		h, err := s.next()
		if err != nil {
			return nil, err
		}
		switch h.kind {
		case kindData:
			err = r.data(s, &h, buf)
		case kindZero:
			err = r.zero(&h)
		case kindLater:
			err = r.comesLater(&h)
		case kindSync:
			if h.offset != round {
				return nil, broken("the end of round %d in round %d", h.offset, round)
			}
			return nil, nil
		case kindState:
			if !first || begun || round == 0 || h.length == 0 {
				return nil, broken("a state where none is due")
			}
			return h.payload(s.in)
		default:
			err = broken("a frame of kind %d in a round", h.kind)
		}
		if err != nil {
			return nil, err
		}
	}
}
