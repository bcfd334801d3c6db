package link

import (
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
