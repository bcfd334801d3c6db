package link

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"time"

	"github.com/cleave-project/cleave/api"
)

// Versions of the link that this code speaks; both sides use the lower of
// their newest.
const (
	newest = 1
	oldest = 1
)

// resend is when the host asks again: a guest that is booting may have lost
// what came before it listened.
const resend = time.Second

// Session is the host's side of a channel.
type Session struct {
	e      *endpoint
	id     uint64
	hatch  io.WriterAt // or nil
	answer chan error
	closed chan struct{}

	// Guarded by endpoint.mu:
	open    bool
	over    bool // closed is closed
	next    uint32
	skipped int // bytes that were no part of the session
}

// maxSkipped is how much the host reads past before it takes the other side
// for no agent: an earlier session has left less on its way.
const maxSkipped = 16 << 20

// NewSession opens a session with the guest at the other end of ch, which it
// owns from then on: it is closed with the session, or when NewSession fails.
// It waits until the guest listens; ctx is for that only.
func NewSession(ctx context.Context, ch io.ReadWriteCloser) (*Session, error) {
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	s := newSession(newEndpoint(ch, 0), binary.BigEndian.Uint64(id[:])|1)
	if p, ok := ch.(Paced); ok {
		s.e.pace.limit = p.Pace()
	}
	if h, ok := ch.(HatchWriter); ok && s.e.pace.limit > 0 {
		s.hatch = h.Hatch()
	}
	s.ask()
	s.e.start(s.take, s.damaged)
	if err := s.wait(ctx); err != nil {
		s.e.fail(err)
		return nil, err
	}
	go func() {
		<-s.e.done
		s.e.mu.Lock()
		s.end(io.EOF)
		s.e.mu.Unlock()
	}()
	return s, nil
}

func newSession(e *endpoint, id uint64) *Session {
	return &Session{e: e, id: id, answer: make(chan error, 1), closed: make(chan struct{})}
}

// wait waits until the session is open.
func (s *Session) wait(ctx context.Context) error {
	again := time.NewTicker(resend)
	defer again.Stop()
	for {
		select {
		case err := <-s.answer:
			return err
		case <-again.C:
			s.e.mu.Lock()
			if !s.open {
				s.ask()
			}
			s.e.mu.Unlock()
		case <-s.e.done:
			return ended(s.e.err)
		case <-ctx.Done():
			code := api.CodeCancelled
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				code = api.CodeTimeout
			}
			return api.Errorf(code, "link to the guest's agent: no answer: %w", context.Cause(ctx))
		}
	}
}

// ask asks for the session, unless the last time is still unwritten; with mu
// held.
func (s *Session) ask() {
	if len(s.e.out) <= 1 {
		payload := []byte{newest, oldest}
		if s.e.pace.limit > 0 {
			payload = append(payload, askCredit)
		}
		if s.hatch != nil {
			payload = append(payload, takesHatch)
		}
		s.e.send(frame{kind: open, session: s.id, payload: payload})
	}
}

// take takes a frame of the guest's; with mu held.
func (s *Session) take(f frame) {
	switch {
	case f.kind == reset && (f.session == 0 || f.session == s.id):
		// A guest that begins to listen says so. It has no session then.
		if s.open {
			s.end(errAnew)
		} else {
			s.ask()
		}
	case s.over:
	case f.session != s.id:
		s.skip(headSize + len(f.payload))
	case f.kind == accept:
		if s.open {
			s.skip(headSize) // the answer to having asked again
			return
		}
		s.open = s.accepts(f.payload)
		var err error
		if !s.open {
			err = api.Errorf(api.CodeUnsupported, "link to the guest's agent: it speaks version %v, this host %d to %d", f.payload, oldest, newest)
		}
		s.e.session = s.id
		select {
		case s.answer <- err:
		default:
		}
	case s.open && f.kind > connect:
		if s.e.take(f); s.e.session == 0 {
			s.end(errLost)
		}
	}
}

// accepts takes the guest's answer: the version, and whether it has the hatch.
func (s *Session) accepts(answer []byte) bool {
	if len(answer) == 2 && answer[1] == takesHatch && s.hatch != nil {
		s.e.pace.hatch.w = s.hatch
		answer = answer[:1]
	}
	return len(answer) == 1 && answer[0] >= oldest && answer[0] <= newest
}

// damaged ends the session; before there is one, what was no frame is left
// over from an earlier.
func (s *Session) damaged(err error) {
	if s.open {
		s.end(err)
	} else {
		s.skip(maxStuffed)
	}
}

// skip passes by n bytes, but not for ever: nobody is to keep the host busy
// with nothing; with mu held.
func (s *Session) skip(n int) {
	if s.skipped += n; s.skipped > maxSkipped && !s.over {
		s.end(errOther)
		select {
		case s.answer <- ended(errOther):
		default:
		}
	}
}

// end ends the session, and then the channel; with mu held.
func (s *Session) end(err error) {
	if !s.over {
		s.over = true
		s.e.end(err)
		s.e.hangUp = true
		notify(s.e.wake)
		close(s.closed)
	}
}

// Open opens a connection to the guest's agent, unless ctx has ended. It
// doesn't wait for the guest.
func (s *Session) Open(ctx context.Context) (net.Conn, error) {
	if ctx.Err() != nil {
		return nil, api.Errorf(api.CodeCancelled, "link to the guest's agent: %w", context.Cause(ctx))
	}
	s.e.mu.Lock()
	defer s.e.mu.Unlock()
	if s.over || s.e.err != nil {
		return nil, api.Errorf(api.CodeUnavailable, "link to the guest's agent: the session has ended")
	}
	s.next++
	c := s.e.add(s.next)
	s.e.send(frame{kind: connect, conn: c.id})
	return c, nil
}

// Closed is closed when the session has ended, by either side or because the
// guest began anew.
func (s *Session) Closed() <-chan struct{} { return s.closed }

// Close ends the session and its connections. It doesn't wait for the guest.
func (s *Session) Close() error {
	s.e.finish()
	s.e.mu.Lock()
	defer s.e.mu.Unlock()
	s.end(net.ErrClosed)
	return nil
}
