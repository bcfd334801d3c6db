package machine

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/cleave-project/cleave/agent"
	"github.com/cleave-project/cleave/agent/link"
	"github.com/cleave-project/cleave/api"
)

// line is the one channel to a guest's agent: a session on it, which is
// opened when it is needed and again when it has ended.
type line struct {
	turn    chan struct{} // holds one token: whoever has it opens the session
	session *link.Session // with the turn
}

// strangerTime is how long a system of its own may take to answer: it may
// have no agent.
const strangerTime = 10 * time.Second

func (e *Engine) line(id string) *line {
	e.mu.Lock()
	defer e.mu.Unlock()
	l := e.lines[id]
	if l == nil {
		l = &line{turn: make(chan struct{}, 1)}
		l.turn <- struct{}{}
		e.lines[id] = l
	}
	return l
}

// Agent implements engine.Engine.
func (e *Engine) Agent(ctx context.Context, id string) (net.Conn, error) {
	g, err := e.Guest(id)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(e.ctx, cancel)()
	if g.Firmware {
		ctx, cancel = context.WithTimeout(ctx, strangerTime)
		defer cancel()
	}
	l := e.line(id)
	select {
	case <-l.turn:
	case <-ctx.Done():
		return nil, silent(g, ctx.Err())
	}
	defer func() { l.turn <- struct{}{} }()
	for first := true; ; first = false {
		if l.session == nil {
			if l.session, err = e.dial(ctx, g); err != nil {
				return nil, silent(g, err)
			}
		}
		c, err := l.session.Open(ctx)
		if err == nil {
			return c, nil
		}
		l.session.Close()
		if l.session = nil; !first || ctx.Err() != nil {
			return nil, silent(g, err)
		}
	}
}

func (e *Engine) dial(ctx context.Context, g *Guest) (*link.Session, error) {
	ch, err := e.monitor.Agent(ctx, g)
	if err != nil {
		return nil, err
	}
	return link.NewSession(ctx, ch)
}

// silent is the error for an agent that doesn't answer.
func silent(g *Guest, err error) error {
	e := api.Errorf(api.CodeUnavailable, "guest %s: its agent doesn't answer: %w", g.ID, err)
	if g.Firmware {
		return e.WithHint("the system in it may have no agent: install one, or use its console")
	}
	return e.WithHint("it may still be booting, or be paused")
}

// drop ends the session with a guest that has ended.
func (e *Engine) drop(id string) {
	e.mu.Lock()
	l := e.lines[id]
	delete(e.lines, id)
	e.mu.Unlock()
	if l == nil {
		return
	}
	// Whoever has the turn finds the guest dead.
	e.closing.Go(func() {
		<-l.turn
		if l.session != nil {
			l.session.Close()
			l.session = nil
		}
		l.turn <- struct{}{}
	})
}

// hangUp ends all sessions. It comes after the end of the engine's context,
// with which whoever opens one gives up.
func (e *Engine) hangUp() {
	e.mu.Lock()
	ids := make([]string, 0, len(e.lines))
	for id := range e.lines {
		ids = append(ids, id)
	}
	e.mu.Unlock()
	for _, id := range ids {
		e.drop(id)
	}
	e.closing.Wait()
}

// Answers tells whether there is a session with the guest's agent.
func (e *Engine) Answers(id string) bool { return e.answers(id) }

// answers tells whether there is a session with the guest's agent.
func (e *Engine) answers(id string) bool {
	e.mu.Lock()
	l := e.lines[id]
	e.mu.Unlock()
	if l == nil {
		return false
	}
	select {
	case <-l.turn:
	default:
		return false // being opened
	}
	defer func() { l.turn <- struct{}{} }()
	if l.session == nil {
		return false
	}
	select {
	case <-l.session.Closed():
		return false
	default:
		return true
	}
}

// client is a connection to the guest's agent for requests of our own.
func (e *Engine) client(ctx context.Context, id string) (*agent.Client, error) {
	conn, err := e.Agent(ctx, id)
	if err != nil {
		return nil, err
	}
	return agent.Dial(ctx, conn)
}

// ask makes one request.
func (e *Engine) ask(ctx context.Context, id string, request func(*agent.Client) error) error {
	c, err := e.client(ctx, id)
	if err != nil {
		return err
	}
	defer c.Close()
	return request(c)
}

// started waits until the guest's entry point was executed. A session that
// breaks while the guest boots is opened again.
func (e *Engine) started(ctx context.Context, id string) error {
	for {
		err := e.ask(ctx, id, func(c *agent.Client) error { return c.Started(ctx) })
		if err == nil || ctx.Err() != nil || e.ctx.Err() != nil || !api.IsCode(err, api.CodeUnavailable) {
			return err
		}
		if _, gone := e.Guest(id); gone != nil {
			return fmt.Errorf("%w (%w)", gone, err)
		}
		// The monitor refuses the channel for a moment, or the guest begins
		// anew: nothing tells when that is over.
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
}

// syncClock sets a guest's clock that stood still.
func (e *Engine) syncClock(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(ctx, strangerTime)
	defer cancel()
	if err := e.ask(ctx, id, func(c *agent.Client) error { return c.SyncClock(ctx, time.Now()) }); err != nil {
		e.log.Warn("set the clock of a guest that stood still", "instance", id, "error", err)
	}
}
