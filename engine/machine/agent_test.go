package machine

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/cleave-project/cleave/agent"
	"github.com/cleave-project/cleave/agent/guest"
	"github.com/cleave-project/cleave/agent/link"
	"github.com/cleave-project/cleave/api"
)

// socket is a guest's end of the channel to its agent, which the host opens
// as often as it likes, as that of a virtio port.
type socket struct {
	t *testing.T
	// serve is given each of the guest's ends and returns at once.
	serve func(net.Conn)

	mu     sync.Mutex
	opened int
	last   net.Conn // the guest's end
}

func (s *socket) open() (io.ReadWriteCloser, error) {
	host, there := net.Pipe()
	s.mu.Lock()
	s.opened++
	s.last = there
	s.mu.Unlock()
	s.t.Cleanup(func() { there.Close() })
	s.serve(there)
	return host, nil
}

func (s *socket) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.opened
}

func agentAnswers(t *testing.T) func(net.Conn) {
	return func(c net.Conn) {
		l := link.Listen(c)
		t.Cleanup(func() { l.Close() })
		go guest.Serve(l) // ends with the listener
	}
}

func ping(t *testing.T, e *Engine, id string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	return e.ask(ctx, id, func(c *agent.Client) error { _, err := c.Ping(ctx); return err })
}

func TestOneSessionServesAllAndIsOpenedAgain(t *testing.T) {
	s := &socket{t: t, serve: agentAnswers(t)}
	e := newEngine(t, &fake{script: "sleep 1000", agent: s.open})
	spec := ownSystem(t)
	start(t, e, spec)
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			if err := ping(t, e, spec.ID); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := s.count(); n != 1 {
		t.Errorf("the channel was opened %d times", n)
	}
	if v, err := e.Inspect(t.Context(), spec.ID); err != nil || v.Agent != "cleave" {
		t.Errorf("%+v, error %v", v, err)
	}
	s.last.Close()
	// The session's end may be noticed by the next who wants it.
	for deadline := time.Now().Add(30 * time.Second); ; {
		err := ping(t, e, spec.ID)
		if err == nil && s.count() == 2 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("opened %d times, error %v", s.count(), err)
		}
	}
}

func TestGuestWhoseAgentLiesHoldsNobodyUp(t *testing.T) {
	for name, serve := range map[string]func(net.Conn){
		"says nothing":  func(c net.Conn) { go io.Copy(io.Discard, c) },
		"reads nothing": func(net.Conn) {},
		"says anything": func(c net.Conn) {
			go io.Copy(io.Discard, c)
			go func() {
				for b := make([]byte, 1000); ; {
					for i := range b {
						b[i] += byte(i)
					}
					if _, err := c.Write(b); err != nil {
						return
					}
				}
			}()
		},
		"hangs up": func(c net.Conn) { c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			s := &socket{t: t, serve: serve}
			e := newEngine(t, &fake{script: "sleep 1000", agent: s.open})
			spec := ownSystem(t)
			start(t, e, spec)
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			var all sync.WaitGroup
			begin := time.Now()
			for range 5 {
				all.Go(func() {
					if c, err := e.Agent(ctx, spec.ID); !api.IsCode(err, api.CodeUnavailable) {
						t.Errorf("connection %v, error %v", c, err)
					}
				})
			}
			all.Wait()
			if took := time.Since(begin); took > strangerTime {
				t.Errorf("it took %v", took)
			}
			if _, err := e.Stats(t.Context(), spec.ID); err != nil {
				t.Error(err)
			}
			if v, err := e.Inspect(t.Context(), spec.ID); err != nil || v.Agent != "" {
				t.Errorf("%+v, error %v", v, err)
			}
		})
	}
}

func TestAgentOfAGuestThatEndedIsNotRunning(t *testing.T) {
	s := &socket{t: t, serve: agentAnswers(t)}
	e := newEngine(t, &fake{script: "sleep 1000", agent: s.open})
	spec := ownSystem(t)
	start(t, e, spec)
	if err := ping(t, e, spec.ID); err != nil {
		t.Fatal(err)
	}
	if err := e.Signal(t.Context(), spec.ID, "SIGKILL"); err != nil {
		t.Fatal(err)
	}
	exit(t, e, spec.ID)
	if err := ping(t, e, spec.ID); !api.IsCode(err, api.CodeConflict) {
		t.Errorf("error %v", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.lines) != 0 {
		t.Errorf("%d lines are left", len(e.lines))
	}
}

func TestCloseEndsWhoWaitsForAnAgent(t *testing.T) {
	asked := make(chan struct{}, 1)
	s := &socket{t: t, serve: func(c net.Conn) {
		go io.Copy(io.Discard, c)
		asked <- struct{}{}
	}}
	e := newEngine(t, &fake{script: "sleep 1000", agent: s.open})
	spec := ownSystem(t)
	g := start(t, e, spec)
	answer := make(chan error, 1)
	begin := time.Now()
	go func() {
		_, err := e.Agent(context.Background(), g.ID)
		answer <- err
	}()
	<-asked
	again, err := New(e.monitor, e.opts)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	if err := <-answer; err == nil || time.Since(begin) > strangerTime {
		t.Errorf("error %v after %v", err, time.Since(begin))
	}
	forget(t, again, g.ID)
}
