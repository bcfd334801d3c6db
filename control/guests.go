package control

import (
	"context"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
)

// guest is an instance's processes as this daemon knows them.
type guest struct {
	engine.Guest
	system     bool
	paused     bool
	kernel     string             // of a machine, if this daemon started it
	upkeep     bool               // it runs nothing but its agent, for us
	unbootable string             // why its firmware boots nothing; guarded by Controller.mu
	health     context.CancelFunc // ends its health check; guarded by Controller.mu
	ended      chan struct{}      // closed when Guest.Exit is set
}

// backoff spaces the restarts of a guest that keeps ending, and attempts at
// anything else that keeps failing.
type backoff struct {
	failures int
	until    time.Time
	timer    *time.Timer
}

const (
	backoffFirst = 100 * time.Millisecond
	backoffMost  = time.Minute
	// A guest that ran this long has recovered.
	backoffReset = 10 * time.Second
)

// live is the guest of an instance, nil if it has no processes.
func (c *Controller) live(id string) *guest {
	c.mu.Lock()
	defer c.mu.Unlock()
	if g := c.guests[id]; g != nil && !g.upkeep {
		return g
	}
	return nil
}

// exit tells how the guest ended, nil while it runs.
func (c *Controller) exit(g *guest) *api.ExitStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	return g.Exit
}

// endsNow tells whether the guest, of which something could not be asked, has
// ended or does so within a moment.
func (c *Controller) endsNow(ctx context.Context, g *guest) bool {
	if g == nil {
		return false
	}
	moment := time.NewTimer(time.Second)
	defer moment.Stop()
	select {
	case <-g.ended:
		return true
	case <-moment.C:
	case <-ctx.Done():
	}
	return false
}

// expect makes room for a guest before it is started, so that its end can't
// come before it is known.
func (c *Controller) expect(id string) *guest {
	c.mu.Lock()
	defer c.mu.Unlock()
	g := &guest{ended: make(chan struct{})}
	c.guests[id] = g
	return g
}

func (c *Controller) forget(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.guests, id)
}

// adopt takes over what an engine found or started.
func (c *Controller) adopt(g *guest, found engine.Guest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	exit, ended := g.Exit, g.Ended
	g.Guest = found
	if exit != nil { // the end was told before the start returned
		g.Exit, g.Ended, g.Running = exit, ended, false
	}
	if g.Exit != nil && exit == nil {
		close(g.ended)
	}
}

// follow hears of guests' ends until the engine is closed.
func (c *Controller) follow(e engine.Engine) {
	for {
		select {
		case x, ok := <-e.Exits():
			if !ok {
				return
			}
			c.mu.Lock()
			if g := c.guests[x.ID]; g != nil && g.Exit == nil {
				g.Exit, g.Ended, g.Running = &x.Status, x.Time, false
				close(g.ended)
				c.due(x.ID)
			}
			c.mu.Unlock()
			c.kick(x.ID)
		case <-c.ctx.Done():
			return
		}
	}
}

// Resync asks an engine anew what lives, after its keeper was replaced. A
// guest that could not be found again counts as ended with its status lost.
func (c *Controller) Resync(ctx context.Context, e engine.Engine) error {
	found, err := e.List(ctx)
	if err != nil {
		return err
	}
	byID := map[string]engine.Guest{}
	for _, g := range found {
		byID[g.ID] = g
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, g := range c.guests {
		in := c.instances.ByID(id)
		if in == nil || kindOf(in) != e.Kind() || g.Exit != nil {
			continue
		}
		now, ok := byID[id]
		switch {
		case ok && now.Running:
			g.Lost = now.Lost
		case ok && now.Exit != nil:
			g.Exit, g.Ended, g.Running, g.Lost = now.Exit, now.Ended, false, now.Lost
			close(g.ended)
		default:
			g.Exit, g.Ended, g.Running = &api.ExitStatus{Code: -1}, time.Now(), false
			g.Lost = []string{"exit status"}
			close(g.ended)
		}
		c.due(id)
		go c.kick(id)
	}
	return nil
}

func kindOf(in *api.Instance) api.Kind {
	if in.Spec.Kind == "" {
		return api.KindContainer
	}
	return in.Spec.Kind
}

// holdBack schedules the next restart of a guest that has just ended, or the
// next attempt at what has just failed: the more often it did in a row, the
// later. Operations don't wait for it.
func (c *Controller) holdBack(id string, ran time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.restarts[id]
	if b == nil || ran >= backoffReset {
		b = &backoff{}
		c.restarts[id] = b
	}
	wait := min(backoffFirst<<min(b.failures, 16), backoffMost)
	b.failures++
	b.until = time.Now().Add(wait)
	b.timer = time.AfterFunc(wait, func() { c.kick(id) })
}

// heldBack tells whether the next attempt has to wait.
func (c *Controller) heldBack(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.restarts[id]
	return b != nil && time.Now().Before(b.until)
}

// due lets the next attempt come at once, since the guest has ended. c.mu is
// held.
func (c *Controller) due(id string) {
	if b := c.restarts[id]; b != nil {
		b.until = time.Time{}
	}
}

// fresh forgets how often the instance failed: a user wants it started or
// removed, or it is gone.
func (c *Controller) fresh(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b := c.restarts[id]; b != nil {
		if b.timer != nil {
			b.timer.Stop()
		}
		delete(c.restarts, id)
	}
}
