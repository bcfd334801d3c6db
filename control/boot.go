package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/store"
)

// A system of its own may have no agent, and be at work all the same. So what
// ends one is never silence, but the word of its firmware that there is
// nothing to boot, as its screen shows.

// defaultBootTime is for whoever starts an empty machine to put something in
// its drive and start it again, and for firmware under translation on a busy
// host, which takes half a minute.
const defaultBootTime = 5 * time.Minute

// lastScreen is the file of a picture in a machine's directory.
const lastScreen = "screen.png"

// bootTime is how long firmware may look for something to boot; 0 for ever.
func bootTime(in *api.Instance) time.Duration {
	if n := in.Spec.Machine.BootSeconds; n != nil {
		return time.Duration(*n) * time.Second
	}
	return defaultBootTime
}

// booter is the engine of an instance, if the instance's system boots by
// firmware and the engine can tell how far it is.
func (c *Controller) booter(in *api.Instance) engine.Booter {
	if !isMachine(in) || !ownSystem(in) {
		return nil
	}
	e, err := c.engineFor(in.Spec.Kind)
	if err != nil {
		return nil
	}
	b, _ := e.(engine.Booter)
	return b
}

// bootState looks at a guest; zero if nothing can be told.
func (c *Controller) bootState(ctx context.Context, in *api.Instance) engine.BootState {
	b := c.booter(in)
	if b == nil {
		return engine.BootState{}
	}
	s, err := b.Boot(ctx, in.ID)
	if err != nil {
		return engine.BootState{}
	}
	return s
}

// watchBoot has a guest stopped whose firmware finds nothing to boot in time.
func (c *Controller) watchBoot(in *api.Instance, g *guest) {
	limit := bootTime(in)
	if limit == 0 || c.booter(in) == nil {
		return
	}
	c.wg.Go(func() { c.followBoot(in, g, limit) })
}

// followBoot looks when the time is up. As long as nothing can be told, it
// looks again after as much time as has passed: nothing tells from outside
// that a firmware gives up.
func (c *Controller) followBoot(in *api.Instance, g *guest, limit time.Duration) {
	// A later daemon gives it a moment to say that it lives.
	next := time.NewTimer(max(time.Until(g.Started.Add(limit)), min(limit, bootTell)))
	defer next.Stop()
	for {
		select {
		case <-next.C:
		case <-g.ended:
			return
		case <-c.ctx.Done():
			return
		}
		now := c.instances.ByID(in.ID)
		if now == nil {
			return
		}
		s := engine.BootState{}
		if now.Status.Phase == api.PhaseRunning { // a frozen guest does nothing
			s = c.bootState(c.ctx, now)
		}
		switch {
		case s.Alive:
			return
		case s.Failed != "":
			c.mu.Lock()
			g.unbootable = s.Failed
			c.mu.Unlock()
			c.kick(in.ID)
			return
		}
		next.Reset(max(limit, time.Since(g.Started)))
	}
}

// bootTell is how long a guest of an earlier daemon has to answer the new one.
const bootTell = 10 * time.Second

// unbootable is why a guest is to be stopped; empty if it isn't.
func (c *Controller) unbootable(g *guest) string {
	if g == nil {
		return ""
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return g.unbootable
}

// endUnbootable stops a guest in which nothing booted. No policy starts it
// again: it would do no better.
func (t *task) endUnbootable(ctx context.Context, g *guest, why string) error {
	c := t.c
	shot := t.keepScreen(ctx)
	if err := t.kill(ctx, g); err != nil {
		return err
	}
	if err := t.cleanUp(ctx); err != nil {
		return err
	}
	c.forget(t.in.ID)
	hint := "give it a disk with a system, or a medium: `cleave insert`, and start it again; --boot tells BIOS from UEFI"
	if shot != nil {
		hint += fmt.Sprintf("; `cleave screenshot %s --last` shows its last screen", t.in.Name)
	}
	cause := api.Errorf(api.CodeTimeout, "instance %q has not booted within %v: %s", t.in.Name, bootTime(t.in), why).
		WithField("spec.machine.bootSeconds").WithHint("%s", hint)
	c.emit("instance.failed", &t.in.Meta, cause.Error(), map[string]string{"reason": reasonNoBoot})
	stopped := store.Now()
	exit := api.ExitStatus{Code: 137, Signal: "SIGKILL", Reason: reasonNoBoot}
	return t.settleWith(nil, func(in *api.Instance) {
		in.Status.Phase, in.Status.PID, in.Status.Error, in.Status.Running = api.PhaseFailed, 0, cause, nil
		in.Status.Exit, in.Status.Stopped, in.Status.LastScreen = &exit, &stopped, shot
		for i := range in.Status.NICs {
			in.Status.NICs[i].Link = ""
		}
		if !c.wantedAgain(in.ID) {
			in.Spec.Power = api.PowerStopped
		}
	})
}

const reasonNoBoot = "no-boot"

// keepScreen keeps what the guest's screen shows, and says when that was; nil
// if it can't be kept.
func (t *task) keepScreen(ctx context.Context) *time.Time {
	c := t.c
	png, err := c.Screenshot(ctx, t.in.Project, t.in.Name)
	if err == nil {
		err = os.MkdirAll(c.machineDir(t.in.ID), 0o700)
	}
	name := filepath.Join(c.machineDir(t.in.ID), lastScreen)
	if err == nil {
		err = os.WriteFile(name+".new", png, 0o600)
	}
	if err == nil {
		err = os.Rename(name+".new", name)
	}
	if err != nil {
		c.log.Warn("the last screen of a guest could not be kept", "instance", t.in.Name, "error", err)
		return nil
	}
	now := store.Now()
	return &now
}

// LastScreen is the picture that was kept of an instance's screen, as PNG.
func (c *Controller) LastScreen(_ context.Context, project, name string) ([]byte, error) {
	in, err := c.Instance(project, name)
	if err != nil {
		return nil, err
	}
	png, err := os.ReadFile(filepath.Join(c.machineDir(in.ID), lastScreen))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, api.Errorf(api.CodeNotFound, "no picture of the screen of instance %q was kept", name).
			WithHint("one is when its firmware finds nothing to boot; `cleave screenshot %s` shows what a running one has", name)
	}
	return png, err
}

// stopping says what a polite stop waits for, and how long it does: not at all
// where there is nobody who could shut down.
func (t *task) stopping(ctx context.Context, wait time.Duration) (string, time.Duration) {
	if t.c.booter(t.in) == nil {
		return "stopping", wait
	}
	s := t.c.bootState(ctx, t.in)
	if s.Failed != "" {
		return "stopping: nothing has booted in it that could shut down, it is switched off", 0
	}
	if in := t.c.inspected(t.in); in.Status.Agent == "" || in.Status.Agent == "none" {
		return fmt.Sprintf("stopping: its power button is pressed, which its system has %v to answer; `cleave stop --force %s` switches it off", wait, t.in.Name), wait
	}
	return "stopping", wait
}
