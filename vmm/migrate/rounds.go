package migrate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// When rounds don't get shorter.
const (
	// A round that leaves more than this share of the least that one has left
	// before has gained little; after two of them the guest is throttled, by
	// steps. Compared with the round before alone, a guest that writes now more
	// and now less would be followed for ever.
	littleGain    = 0.7
	throttleFirst = 20
	throttleStep  = 10
	throttleMost  = 95
	// lastRounds are how many at the most throttling, or without any, may gain
	// little before the migration is given up.
	lastRounds = 8
)

var zeroes [unit]byte

func isZero(b []byte) bool { return bytes.Equal(b, zeroes[:len(b)]) }

// copy sends volumes in rounds while the guest runs, and hands it over.
func (s *sender) copy(ctx context.Context) (err error) {
	detach := context.AfterFunc(ctx, func() {
		for _, t := range s.streams {
			t.halt(!s.handing.Load()) // a destination that may be ready has to hear it
		}
	})
	defer detach()
	defer func() {
		for _, v := range s.volumes {
			err = errors.Join(err, v.End())
		}
	}()
	list, err := s.begin()
	if err != nil {
		return err
	}
	gained, rate := progress{least: left(list)}, 0.0
	for first := true; ; first = false {
		s.report.Phase, s.report.Left = "copying", left(list)
		s.report.Round++
		s.tell()
		before, begin := s.sent.Load(), time.Now()
		if err := s.round(list, first); err != nil {
			return err
		}
		sent := s.sent.Load() - before
		// A round of little says little of the rate.
		if took := time.Since(begin); sent > maxData || rate == 0 {
			rate = max(float64(sent), 1) / max(took.Seconds(), 1e-6)
		}
		if list, err = s.written(); err != nil {
			return err
		}
		rest := left(list)
		soon := func(n int64) bool { return time.Duration(float64(n)/rate*float64(time.Second)) <= s.o.Downtime }
		if soon(rest) {
			return s.switchOver(ctx, list, detach)
		}
		if s.o.PostCopy && soon(s.leave(list)) {
			s.trail = newTrail(s)
			return s.switchOver(ctx, list, detach)
		}
		if gained.note(rest); gained.little < 2 {
			continue
		}
		if err := s.slower(gained.little, rest, rate); err != nil {
			return err
		}
	}
}

// progress is what rounds have gained.
type progress struct {
	least  int64 // bytes that one has left
	little int   // how many rounds in a row have gained little
}

func (p *progress) note(rest int64) {
	if float64(rest) > littleGain*float64(p.least) {
		p.little++
		return
	}
	p.least, p.little = rest, 0
}

// slower throttles the guest by a step, or gives up.
func (s *sender) slower(little int, rest int64, rate float64) error {
	if !s.o.Throttle || s.report.Throttle >= throttleMost {
		if little < lastRounds {
			return nil
		}
		return fmt.Errorf("the guest writes faster than can be sent: %d bytes are left after %d rounds at %.0f MB/s, more than go in a downtime of %s",
			rest, s.report.Round, rate/1e6, s.o.Downtime)
	}
	s.report.Throttle = min(max(throttleFirst, s.report.Throttle+throttleStep), throttleMost)
	s.guest.Throttle(s.report.Throttle)
	return nil
}

// begin is all that there is.
func (s *sender) begin() (list []piece, err error) {
	for i, v := range s.volumes {
		data, err := v.Begin()
		if err != nil {
			return nil, err
		}
		list = append(list, pieces(i, data, false)...)
		if !s.blank[i] {
			list = append(list, pieces(i, holes(data, v.Size()), true)...)
		}
	}
	return list, nil
}

// written is what was written since the last round began.
func (s *sender) written() (list []piece, err error) {
	for i, v := range s.volumes {
		w, err := v.Written()
		if err != nil {
			return nil, err
		}
		list = append(list, pieces(i, w, false)...)
	}
	return list, nil
}

// leave is left without what may follow the guest.
func (s *sender) leave(list []piece) int64 {
	return left(slices.DeleteFunc(slices.Clone(list), func(p piece) bool { return s.follows(int(p.volume)) }))
}

// left is how many bytes are to be sent, at the most.
func left(list []piece) (n int64) {
	for _, p := range list {
		if !p.zero {
			n += p.Size
		}
	}
	return n
}

// switchOver stops the guest, sends what is left of it and hands it over.
func (s *sender) switchOver(ctx context.Context, list []piece, detach func() bool) error {
	begin := time.Now()
	s.report.Phase, s.report.Left = "switching", left(list)
	s.tell()
	s.guest.Throttle(0)
	state, err := s.guest.Freeze()
	if err != nil {
		return errors.Join(err, s.guest.Thaw())
	}
	err = s.rest(list, state)
	if err == nil && !detach() {
		err = ctx.Err() // it has ended: not one step further
	}
	if err != nil {
		// A destination that is ready would wait for ever.
		s.abort(err)
		return errors.Join(err, s.guest.Thaw())
	}
	// From here on the guest is not ours to let run.
	if s.trail != nil {
		return s.trail.follow(ctx, begin)
	}
	if err := s.streams[0].send(head{kind: kindGo}, nil); err != nil {
		return fmt.Errorf("%w: %w", ErrUndecided, err)
	}
	switch err := s.streams[0].expect(kindRunning, 0); {
	case errors.Is(err, errAborted):
		return errors.Join(err, s.guest.Thaw())
	case err != nil:
		return fmt.Errorf("%w: %w", ErrUndecided, err)
	}
	s.report.Downtime = time.Since(begin)
	return nil
}

// abort tells the destination, between what follows the guest if there is
// something.
func (s *sender) abort(why error) {
	if s.trail != nil {
		s.trail.mu.Lock()
		defer s.trail.mu.Unlock()
	}
	s.streams[0].abort(why)
}

// rest sends what was left when the guest was stopped, and its state.
func (s *sender) rest(list []piece, state []byte) error {
	more, err := s.written()
	if err != nil {
		return err
	}
	if s.trail != nil {
		s.trail.take(list)
		s.trail.take(more)
	}
	if err := s.round(list, false); err != nil {
		return err
	}
	if err := s.round(more, false); err != nil {
		return err
	}
	s.handing.Store(true)
	if err := s.streams[0].send(head{kind: kindState}, state); err != nil {
		return s.why(err)
	}
	if s.trail != nil {
		return s.trail.ready()
	}
	return s.streams[0].expect(kindReady, 0)
}
