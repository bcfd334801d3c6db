package migrate

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// trail is what follows a guest that goes on before all of it is there.
type trail struct {
	sender *sender

	mu    sync.Mutex // of what is left, and of writing to the first stream
	left  [][]uint64 // by volume, a bit for each unit
	bytes int64

	words     chan word // of the destination
	listening sync.WaitGroup
	ran       bool
}

// word is a frame, or why there are no more.
type word struct {
	head
	err error
}

func newTrail(s *sender) *trail {
	t := &trail{sender: s}
	for i, v := range s.volumes {
		n := int64(0)
		if s.follows(i) {
			n = (v.Size()/unit + 63) / 64
		}
		t.left = append(t.left, make([]uint64, n))
	}
	return t
}

// take marks pieces that may follow, so that a round announces them alone.
func (t *trail) take(list []piece) {
	for i := range list {
		if p := &list[i]; t.sender.follows(int(p.volume)) {
			p.later = true
			t.add(int(p.volume), p.Range)
		}
	}
}

// add notes that a range is to follow.
func (t *trail) add(volume int, r Range) {
	bits := t.left[volume]
	for u := r.Offset / unit; u < (r.Offset+r.Size)/unit; u++ {
		if bits[u/64]&(1<<(u%64)) == 0 {
			bits[u/64] |= 1 << (u % 64)
			t.bytes += unit
		}
	}
}

// cut takes what of a range, which is short, is still to follow.
func (t *trail) cut(volume int, r Range) (out []Range) {
	bits := t.left[volume]
	for u := r.Offset / unit; u < (r.Offset+r.Size)/unit; u++ {
		if bits[u/64]&(1<<(u%64)) == 0 {
			continue
		}
		bits[u/64] &^= 1 << (u % 64)
		t.bytes -= unit
		if k := len(out) - 1; k >= 0 && out[k].Offset+out[k].Size == u*unit {
			out[k].Size += unit
		} else {
			out = append(out, Range{u * unit, unit})
		}
	}
	return out
}

// listen reads what the destination says, answers what it wants, and passes
// the rest on, up to an error.
func (t *trail) listen() {
	words := make(chan word, 4) // ready, running, whole, an error
	t.words = words
	t.listening.Go(func() {
		for range cap(words) {
			h, err := t.serve()
			words <- word{h, err}
			if err != nil {
				return
			}
		}
	})
}

// serve answers what the destination wants, up to something else.
func (t *trail) serve() (head, error) {
	for {
		h, err := t.sender.streams[0].nextWithin(forever)
		if err != nil || h.kind != kindWant {
			return h, err
		}
		if err := t.answer(&h); err != nil {
			return h, err
		}
	}
}

// forever is longer than a migration takes.
const forever = 10 * 365 * 24 * time.Hour

// answer sends what the destination needs at once.
func (t *trail) answer(h *head) error {
	r, err := t.part(h)
	switch {
	case err != nil:
		return err
	case r.Size > maxData:
		return broken("%d bytes are wanted at once", r.Size)
	}
	return t.push(t.sender.streams[0], int(h.volume), r)
}

// part is the part of a volume that a frame is about.
func (t *trail) part(h *head) (Range, error) {
	v := int(h.volume)
	if v < len(t.left) && t.sender.follows(v) && h.size > 0 && h.offset%unit == 0 && h.size%unit == 0 {
		if all := uint64(t.sender.volumes[v].Size()); h.offset <= all && h.size <= all-h.offset {
			return Range{int64(h.offset), int64(h.size)}, nil
		}
	}
	return Range{}, broken("%d bytes at %#x of volume %d follow no guest", h.size, h.offset, v)
}

// push sends what of a range is still to follow. On the first stream, answers
// and all else take turns.
func (t *trail) push(s *stream, volume int, r Range) error {
	t.mu.Lock()
	list := t.cut(volume, r)
	if s != t.sender.streams[0] {
		t.mu.Unlock()
	} else {
		defer t.mu.Unlock()
	}
	if len(list) == 0 {
		return nil
	}
	buf := make([]byte, r.Size)
	for _, p := range list {
		b := buf[:p.Size]
		if _, err := t.sender.volumes[volume].ReadAt(b, p.Offset); err != nil {
			return fmt.Errorf("read volume %q: %w", t.sender.volumes[volume].Name(), err)
		}
		if err := t.sender.content(s, piece{volume: uint8(volume), Range: p}, b, false); err != nil {
			return err
		}
	}
	return s.out.Flush() // who waits for it can't wait for what comes behind it
}

// say sends a frame on the first stream.
func (t *trail) say(h head) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.sender.streams[0].send(h, nil)
}

// hear waits for a word of the destination.
func (t *trail) hear(k kind) error {
	timer := time.NewTimer(stall)
	defer timer.Stop()
	select {
	case w := <-t.words:
		if w.err == nil && w.kind != k {
			w.err = broken("a frame of kind %d where one of kind %d was due", w.kind, k)
		}
		return w.err
	case <-timer.C:
		return fmt.Errorf("the destination says nothing: %w", errPast)
	}
}

// ready waits until the destination could run the guest. It may want parts of
// its memory for that.
func (t *trail) ready() error {
	t.listen()
	return t.hear(kindReady)
}

// follow has the destination run the guest, and sends what is left of it.
func (t *trail) follow(ctx context.Context, began time.Time) error {
	s := t.sender
	stop := context.AfterFunc(ctx, func() { t.close() })
	defer stop()
	err := t.hand(began)
	if err == nil {
		err = t.rest()
	}
	if err != nil {
		err = t.why(err)
	}
	t.close() // so that the destination waits for others
	t.listening.Wait()
	switch {
	case err == nil:
		return nil
	case !errors.Is(err, errAborted):
		return &Interrupted{Err: errors.Join(err, context.Cause(ctx)), Ran: t.ran, trail: t}
	case t.ran:
		return nil // the guest has ended there
	}
	return errors.Join(err, s.guest.Thaw())
}

// why prefers what the destination said to that its streams have ended.
func (t *trail) why(err error) error {
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	for !errors.Is(err, errAborted) {
		select {
		case w := <-t.words:
			if w.err != nil && !errors.Is(w.err, errAborted) {
				return err
			}
			if w.err != nil {
				return w.err
			}
			t.ran = t.ran || w.kind == kindRunning
		case <-timer.C:
			return err
		}
	}
	return err
}

func (t *trail) close() {
	for _, s := range t.sender.streams {
		s.Close()
	}
}

// hand says that the guest is the destination's, and waits until it runs.
func (t *trail) hand(began time.Time) error {
	if err := t.say(head{kind: kindGo}); err != nil {
		return err
	}
	if err := t.hear(kindRunning); err != nil {
		return err
	}
	t.ran = true
	if t.sender.report.Downtime == 0 {
		t.sender.report.Downtime = time.Since(began)
	}
	return nil
}

// followUnits are how many units go at once behind a guest that may want
// something else in between: a divisor of 64, and so of a word of bits.
const followUnits = 16

// parts are those of volumes of which something is still to follow.
func (t *trail) parts() (out []piece) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for v, bits := range t.left {
		for u := int64(0); u < int64(len(bits))*64; u += followUnits {
			if bits[u/64]>>(u%64)&(1<<followUnits-1) != 0 {
				out = append(out, piece{volume: uint8(v), Range: Range{u * unit, followUnits * unit}})
			}
		}
	}
	return out
}

// rest sends all that is left, on all streams but the first, which is for
// what is wanted, unless there is no other.
func (t *trail) rest() error {
	s, parts := t.sender, t.parts()
	streams := s.streams
	if len(streams) > 1 {
		streams = streams[1:]
	}
	var wg sync.WaitGroup
	var next atomic.Int64
	errs := make([]error, len(streams))
	for i, stream := range streams {
		wg.Go(func() {
			for errs[i] == nil {
				n := next.Add(1) - 1
				if n >= int64(len(parts)) {
					return
				}
				if n%256 == 0 {
					t.tell()
				}
				errs[i] = t.push(stream, int(parts[n].volume), parts[n].Range)
			}
			next.Store(int64(len(parts))) // the others needn't go on
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for _, stream := range s.streams[1:] {
		if err := stream.send(head{kind: kindSync}, nil); err != nil {
			return err
		}
	}
	if err := t.say(head{kind: kindSync}); err != nil {
		return err
	}
	return t.hear(kindWhole)
}

func (t *trail) tell() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sender.report.Phase, t.sender.report.Left = "following", t.bytes
	t.sender.tell()
}
