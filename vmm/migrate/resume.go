package migrate

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

// Interrupted is that the guest runs at the destination, or will, and that a
// part of its memory is still here: Resume sends it, and nothing else has the
// guest whole again.
type Interrupted struct {
	Err error
	// Ran is that the guest has run at the destination: what it was here is
	// past, and must not run again.
	Ran bool

	trail *trail
}

func (e *Interrupted) Error() string {
	return fmt.Sprintf("the guest's memory isn't all there, resume over other connections: %v", e.Err)
}

func (e *Interrupted) Unwrap() error { return e.Err }

// Resume goes on with what was interrupted, over other connections to the same
// destination, which it closes. Its error is as that of Send.
func (e *Interrupted) Resume(ctx context.Context, conns []net.Conn) (Report, error) {
	t := e.trail
	s := t.sender
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	stop := context.AfterFunc(ctx, func() {
		for _, c := range conns {
			c.Close()
		}
	})
	defer stop()
	err := s.greet(ctx, conns, hello{Resume: true})
	if err == nil {
		err = t.missing()
	}
	if err != nil {
		return s.report, &Interrupted{Err: fmt.Errorf("resume: %w", errors.Join(err, context.Cause(ctx))), Ran: t.ran, trail: t}
	}
	t.listen()
	err = t.follow(ctx, time.Now())
	s.tell()
	return s.report, err
}

// missing takes the destination's word for what it hasn't got.
func (t *trail) missing() error {
	for _, bits := range t.left {
		clear(bits)
	}
	t.bytes = 0
	for {
		h, err := t.sender.streams[0].next()
		if err != nil {
			return err
		}
		switch h.kind {
		case kindWelcome:
			t.ran = t.ran || h.offset == 1
			return nil
		case kindLater:
		default:
			return broken("a frame of kind %d where one of what is missing was due", h.kind)
		}
		r, err := t.part(&h)
		if err != nil {
			return err
		}
		t.add(int(h.volume), r)
	}
}
