package link

import (
	"bytes"
	"net"
	"sync"
	"testing"
	"time"
)

func TestSessionCarriesManyConnections(t *testing.T) {
	line := newLine(t)
	l := Listen(line.guest())
	t.Cleanup(func() { l.Close() })
	go echo(l)
	s := mustOpen(t, line.host())
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			for range 5 {
				c := mustConnect(t, s)
				echoes(t, c, 100_000)
				c.Close()
			}
		})
	}
	all.Wait()
	s.e.mu.Lock()
	defer s.e.mu.Unlock()
	if n := len(s.e.conns); n > 0 {
		t.Errorf("%d connections are left", n)
	}
}

// The daemon dies and comes back, again and again.
func TestListenerSurvivesTheHostsSessions(t *testing.T) {
	line := newLine(t)
	l := Listen(line.guest())
	t.Cleanup(func() { l.Close() })
	go echo(l)
	for range 20 {
		h := line.host()
		s := mustOpen(t, h)
		c := mustConnect(t, s)
		echoes(t, c, 10_000)
		go c.Write(make([]byte, 1<<20)) // in the midst of it
		h.Close()
		<-s.Closed()
		if _, err := s.Open(within(t)); err == nil {
			t.Error("a session that has ended opens connections")
		}
	}
}

// One that nobody reads holds up no other.
func TestConnectionsAreIndependent(t *testing.T) {
	line := newLine(t)
	l := Listen(line.guest())
	t.Cleanup(func() { l.Close() })
	s := mustOpen(t, line.host())
	stuck := mustConnect(t, s)
	g := mustAccept(t, l)
	for _, c := range []net.Conn{stuck, g} {
		go c.Write(make([]byte, 8*window))
	}
	go echo(l)
	for range 10 {
		echoes(t, mustConnect(t, s), 3*window)
	}
}

// A guest whose agent hangs holds nobody up.
func TestCallersAreNotHeldByASilentGuest(t *testing.T) {
	line := newLine(t)
	l := Listen(line.guest())
	t.Cleanup(func() { l.Close() })
	s := mustOpen(t, line.host())
	line.toGuest.mu.Lock()
	line.toGuest.limit = 0 // nothing is taken any more
	line.toGuest.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 3 {
			c := mustConnect(t, s)
			c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
			c.Write(make([]byte, 4<<20))
			c.Close()
		}
		s.Close()
		<-s.Closed()
	}()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("a silent guest holds its caller up")
	}
}

// A hostile guest keeps the host busy with what is no part of a session, or
// with data for connections that are closed.
func TestHostReadsPastOnlySoMuch(t *testing.T) {
	var enc encoder
	payload := make([]byte, maxPayload)
	stray := func(session uint64, sequence uint32) []byte {
		return enc.append(nil, frame{kind: data | fromGuest, session: session, sequence: sequence, conn: 9, payload: payload})
	}
	for name, c := range map[string]struct {
		open  bool
		flood func(id uint64, sequence uint32) []byte
	}{
		"garbage before a session": {false, func(uint64, uint32) []byte { return append(bytes.Repeat([]byte{1}, 2*maxPayload), delimiter) }},
		"frames of another before": {false, func(uint64, uint32) []byte { return stray(2, 0) }},
		"frames of another":        {true, func(uint64, uint32) []byte { return stray(2, 0) }},
		"data for nobody":          {true, stray},
	} {
		t.Run(name, func(t *testing.T) {
			line := newLine(t)
			failed, opened := make(chan error, 1), make(chan *Session, 1)
			go func() {
				s, err := NewSession(within(t), line.host())
				if err != nil {
					failed <- err
				} else {
					opened <- s
				}
			}()
			r := scanner{bufioReader(line.guest())}
			var id uint64
			for id == 0 {
				f, _, err := r.next()
				if err != nil {
					t.Fatal(err)
				}
				id = f.session
			}
			var over <-chan struct{}
			if c.open {
				line.toHost.Write(enc.append(nil, frame{kind: accept | fromGuest, session: id, payload: []byte{1}}))
				over = (<-opened).Closed()
			}
			for sequence := uint32(0); ; sequence++ {
				if sequence > 2*maxSkipped/maxPayload {
					t.Fatal("the host reads on")
				}
				select {
				case <-over:
					return
				case <-failed:
					return
				default:
					line.toHost.leave(c.flood(id, sequence))
					for line.toHost.size() > 1<<20 {
						select {
						case <-over:
							return
						case <-failed:
							return
						case <-time.After(time.Millisecond):
						}
					}
				}
			}
		})
	}
}
