package control

import (
	"cmp"
	"context"
	"time"

	"github.com/cleave-project/cleave/agent"
	"github.com/cleave-project/cleave/api"
)

// watchHealth runs an instance's health check in the guest until it ends or
// the check is replaced.
func (c *Controller) watchHealth(in *api.Instance, g *guest) {
	c.mu.Lock()
	if g.health != nil {
		g.health()
		g.health = nil
	}
	c.mu.Unlock()
	check := c.healthCheck(in)
	if check == nil {
		return
	}
	ctx, cancel := context.WithCancel(c.ctx)
	c.mu.Lock()
	g.health = cancel
	c.mu.Unlock()
	c.wg.Go(func() {
		defer cancel()
		c.checkHealth(ctx, in.ID, g, *check)
	})
}

// healthCheck is the instance's own check, else its image's, else nil.
func (c *Controller) healthCheck(in *api.Instance) *api.HealthCheck {
	check := in.Spec.Health
	if check == nil {
		if img, err := c.images.Get(c.ctx, in.Status.Digest); err == nil {
			check = img.Config.Health
		}
	}
	if check == nil || len(check.Command) == 0 {
		return nil
	}
	return check
}

// checkHealth follows Docker's rules (Dockerfile reference, HEALTHCHECK):
// failures within the start period don't count, one success ends it.
func (c *Controller) checkHealth(ctx context.Context, id string, g *guest, check api.HealthCheck) {
	every := time.Duration(cmp.Or(check.IntervalSeconds, defaultHealthEvery)) * time.Second
	tries := cmp.Or(check.Retries, defaultHealthTries)
	grace := g.Started.Add(time.Duration(check.StartSeconds) * time.Second)
	state, failures := "starting", 0
	// The first look comes early: a guest that is up at once needn't be
	// waited for.
	next := time.NewTimer(min(every, time.Second))
	defer next.Stop()
	for {
		select {
		case <-next.C:
		case <-g.ended:
			return
		case <-ctx.Done():
			return
		}
		now := state
		switch {
		case c.probe(ctx, id, check):
			now, failures = "healthy", 0
		case state == "starting" && time.Now().Before(grace):
		default:
			if failures++; failures >= tries {
				now = "unhealthy"
			}
		}
		if now != state && ctx.Err() == nil {
			state = now
			c.setHealth(ctx, id, state)
		}
		next.Reset(every)
	}
}

// probe runs the check once.
func (c *Controller) probe(ctx context.Context, id string, check api.HealthCheck) bool {
	in := c.instances.ByID(id)
	if in == nil || in.Status.Phase == api.PhasePaused {
		return true // a frozen guest is not ill
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(cmp.Or(check.TimeoutSeconds, defaultHealthEvery))*time.Second)
	defer cancel()
	a, err := c.Agent(ctx, in.Project, in.Name)
	if err != nil {
		return false
	}
	defer a.Close()
	x, err := a.Exec(ctx, agent.ExecRequest{Command: check.Command})
	if err != nil {
		return false
	}
	defer x.Close()
	code, err := x.Wait(ctx)
	return err == nil && code == 0
}

func (c *Controller) setHealth(ctx context.Context, id, state string) {
	in, err := c.instances.Update(ctx, id, func(in *api.Instance) error {
		if in.Status.Phase != api.PhaseRunning && in.Status.Phase != api.PhasePaused {
			return api.Errorf(api.CodeCancelled, "it ended")
		}
		in.Status.Health = state
		return nil
	})
	if err == nil {
		c.emit("instance.health", &in.Meta, state, nil)
	}
}
