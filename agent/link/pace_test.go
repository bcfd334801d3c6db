package link

import (
	"sync"
	"testing"
	"time"
)

const pacedTo = 3 << 10

// strict is the host's end of a line that takes no more than a terminal holds.
type strict struct {
	*end
	t *testing.T
}

func (s *strict) Pace() int { return pacedTo }

func (s *strict) Write(p []byte) (int, error) {
	s.out.mu.Lock()
	if n := len(s.out.buf) + len(p); n > pacedTo+20*(headSize+checkSize+10) {
		s.t.Errorf("%d bytes on their way", n)
	}
	s.out.mu.Unlock()
	return s.end.Write(p)
}

// slow is a guest's end that is read late and little by little.
type slow struct{ *end }

func (s *slow) Read(p []byte) (int, error) {
	time.Sleep(50 * time.Microsecond)
	return s.end.Read(p[:min(len(p), 700)])
}

func TestPacedLineNeverHasMoreThanItTakes(t *testing.T) {
	line := newLine(t)
	l := Listen(&slow{line.guest()})
	t.Cleanup(func() { l.Close() })
	go echo(l)
	for range 2 { // the guest goes on, with another host
		s := mustOpen(t, &strict{line.host(), t})
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() {
				c := mustConnect(t, s)
				echoes(t, c, 100_000)
				c.Close()
			})
		}
		all.Wait()
		s.Close()
		<-s.e.done
	}
}

func TestCreditThatIsNotDueEndsTheSession(t *testing.T) {
	p := pace{limit: pacedTo}
	p.send(10, false)
	for _, bad := range [][]byte{nil, {0, 0, 0}, {0, 0, 0, 2}, {255, 255, 255, 255}} {
		if p.credit(bad) {
			t.Errorf("% x is taken", bad)
		}
	}
	if !p.credit([]byte{0, 0, 0, 1}) || p.bytes != 0 || len(p.flight) != 0 {
		t.Errorf("%+v after all was credited", p)
	}
}
