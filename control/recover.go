package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/network"
	"github.com/cleave-project/cleave/store"
)

// Start makes the records live: it finds the guests that a former daemon
// left running, removes what has no record, and goes on with work that was
// cut short. It returns when the daemon can serve; guests that are to be
// started then start in the background.
func (c *Controller) Start(ctx context.Context) error {
	rebooted, err := c.noteBoot(ctx)
	if err != nil {
		return err
	}
	if err := c.openPools(ctx); err != nil {
		return err
	}
	if err := c.openNetworks(ctx); err != nil {
		return err
	}
	for _, e := range c.walls {
		if err := c.recoverGuests(ctx, e); err != nil {
			return err
		}
	}
	if err := c.settleLost(ctx, rebooted); err != nil {
		return err
	}
	if err := c.sweepNetwork(ctx); err != nil {
		c.log.Error("the network could not be swept", "error", err)
	}
	if err := c.sweepVolumes(ctx); err != nil {
		c.log.Error("pools could not be swept", "error", err)
	}
	if err := c.sweepMachines(); err != nil {
		c.log.Error("directories of machines could not be swept", "error", err)
	}
	if err := c.endStaleOperations(); err != nil {
		return err
	}
	for _, e := range c.walls {
		c.wg.Go(func() { c.follow(e) })
		// Measuring takes a while; the first who needs it shall not wait for it.
		c.wg.Go(func() { e.look(c.ctx, false) })
	}
	for _, in := range c.instances.All() {
		if g := c.live(in.ID); g != nil && c.exit(g) == nil {
			c.resumeGuest(ctx, in, g)
		}
		c.kick(in.ID)
	}
	return nil
}

// noteBoot tells whether the host was booted since the last daemon ran.
func (c *Controller) noteBoot(ctx context.Context) (bool, error) {
	var last string
	known, err := c.store.GetValue(ctx, "boot/"+c.host, &last)
	if err != nil {
		return false, fmt.Errorf("reading the last boot: %w", err)
	}
	now := bootID()
	if known && last == now {
		return false, nil
	}
	return known, c.store.PutValue(ctx, "boot/"+c.host, now)
}

// openPools opens every pool; the default one is made first if there is
// none. One that can't be opened is an error of what needs it, not of the
// daemon.
func (c *Controller) openPools(ctx context.Context) error {
	if c.pools.Len() == 0 {
		p := &api.Pool{Meta: newMeta(poolProject, &api.Meta{Name: defaultPool}), Spec: api.PoolSpec{Driver: "btrfs"}}
		if err := c.openPool(ctx, p, true); err != nil {
			c.log.Warn("no btrfs pool is possible here, using the driver dir", "reason", err)
			p.Spec.Driver = "dir"
			if err := c.openPool(ctx, p, true); err != nil {
				c.log.Error("no pool could be made", "error", err)
			}
		}
		return c.store.Commit(ctx, c.pools.Create(p))
	}
	for _, p := range c.pools.All() {
		if err := c.openPool(ctx, p, false); err != nil {
			c.log.Error("a pool could not be opened", "pool", p.Name, "error", err)
		}
	}
	return nil
}

// openNetworks makes every network what its record says; the default one is
// made first if there is none.
func (c *Controller) openNetworks(ctx context.Context) error {
	if c.networks.Len() == 0 {
		n := &api.Network{Meta: newMeta(api.DefaultProject, &api.Meta{Name: defaultNetwork})}
		if err := c.store.Commit(ctx, c.networks.Create(n)); err != nil {
			return err
		}
	}
	var failed []string
	for _, n := range c.networks.All() {
		ready, err := c.openNetwork(ctx, n)
		if err != nil {
			return err
		}
		if !ready {
			failed = append(failed, n.ID)
		}
	}
	if len(failed) > 0 {
		c.wg.Go(func() { c.retryNetworks(failed) })
	}
	return nil
}

// openNetwork makes a network what its record says, and records what came of
// it.
func (c *Controller) openNetwork(ctx context.Context, n *api.Network) (ready bool, err error) {
	status, err := c.net.Ensure(ctx, n)
	ready = err == nil
	if err != nil {
		c.log.Error("a network is not ready", "network", n.Name, "error", err)
		status = n.Status
		status.State = c.naming(err).Error()
	}
	if status.State == n.Status.State && status.Bridge == n.Status.Bridge && status.IPv4 == n.Status.IPv4 && status.IPv6 == n.Status.IPv6 {
		return ready, nil
	}
	_, err = c.networks.Update(ctx, n.ID, func(n *api.Network) error { n.Status = status; return nil })
	return ready, err
}

// networkRetry is the time until a network that isn't ready is tried again,
// at first: what it needs (a module, addresses that another program holds, a
// firewall that is being loaded) may come a moment after the daemon.
var networkRetry = time.Second

// retryNetworks tries networks again until they are ready or gone, or the
// daemon ends.
func (c *Controller) retryNetworks(ids []string) {
	for wait := networkRetry; len(ids) > 0; wait = min(2*wait, backoffMost) {
		select {
		case <-time.After(wait):
		case <-c.ctx.Done():
			return
		}
		ids = slices.DeleteFunc(ids, func(id string) bool {
			n := c.networks.ByID(id)
			if n == nil || c.ctx.Err() != nil {
				return true
			}
			ready, err := c.openNetwork(c.ctx, n)
			if ready && err == nil {
				c.log.Info("a network is ready now", "network", n.Name)
				c.emit("network.ready", &n.Meta, "", nil)
			}
			return ready && err == nil
		})
	}
}

// recoverGuests takes over the guests of an engine. One without a record was
// being created or deleted when the last daemon died; it is ended.
func (c *Controller) recoverGuests(ctx context.Context, e engine.Engine) error {
	found, err := e.List(ctx)
	if err != nil {
		return fmt.Errorf("looking for guests: %w", err)
	}
	for _, f := range found {
		in := c.instances.ByID(f.ID)
		switch {
		case in == nil:
			err = errors.Join(e.Clean(ctx, f.ID), e.Forget(ctx, f.ID))
		case kindOf(in) != e.Kind(), f.Upkeep: // its files were being moved, which begins anew
			err = e.Clean(ctx, f.ID)
		}
		if in == nil || kindOf(in) != e.Kind() || f.Upkeep {
			c.log.Warn("ended a guest that the last daemon was at work with", "id", f.ID, "error", err)
			continue
		}
		g := c.expect(f.ID)
		g.system = in.Status.System
		g.paused = in.Status.Phase == api.PhasePaused
		c.adopt(g, f)
	}
	return nil
}

// settleLost deals with instances that were running when the last daemon
// knew them and have no processes now: the host was booted since, or the
// keeper died and their end with it. What is left of them is removed.
func (c *Controller) settleLost(ctx context.Context, rebooted bool) error {
	for _, in := range c.instances.All() {
		if c.live(in.ID) != nil {
			continue
		}
		e, err := c.engineFor(in.Spec.Kind)
		if err != nil {
			continue
		}
		if err := e.Clean(ctx, in.ID); err != nil {
			c.log.Error("what a guest left could not be removed", "instance", in.Name, "error", err)
		}
		if in.Status.Phase != api.PhaseRunning && in.Status.Phase != api.PhasePaused {
			continue
		}
		lost := "exit status"
		if rebooted {
			lost = "exit status: the host was booted"
		}
		again := policyOf(in) == api.RestartAlways || in.Spec.Autostart || (policyOf(in) == api.RestartOnFailure && !rebooted)
		if err := c.recordStopped(ctx, in.ID, api.ExitStatus{Code: -1}, store.Now(), []string{lost}, again); err != nil {
			return err
		}
		c.emit("instance.stopped", &in.Meta, lost+" lost", nil)
	}
	return nil
}

// recordStopped records that a guest ended apart from its worker, and whether
// it runs again when the next work on it is done.
func (c *Controller) recordStopped(ctx context.Context, id string, exit api.ExitStatus, at time.Time, lost []string, again bool) error {
	_, err := c.instances.Update(ctx, id, func(in *api.Instance) error {
		in.Status.Phase, in.Status.PID, in.Status.Health = api.PhaseStopped, 0, ""
		in.Status.Exit, in.Status.Stopped, in.Status.Lost, in.Status.Running = &exit, &at, lost, nil
		for i := range in.Status.NICs {
			in.Status.NICs[i].Link = ""
		}
		if !again && !c.wantedAgain(id) {
			in.Spec.Power = api.PowerStopped
		}
		if in.Spec.Ephemeral && in.Deleting == nil {
			in.Deleting, in.Status.Phase = &at, api.PhaseDeleting
		}
		return nil
	})
	return err
}

// resumeGuest restores what the daemon does for a running guest.
func (c *Controller) resumeGuest(ctx context.Context, in *api.Instance, g *guest) {
	c.name(in)
	if in.Status.Phase != api.PhaseRunning && in.Status.Phase != api.PhasePaused {
		return
	}
	// A change of limits may have been cut short between guest and record.
	if (&task{ops: c.ops.openFor(in.ID)}).has("instance.update") != nil {
		if err := c.limit(ctx, in); err != nil {
			c.log.Warn("limits could not be set anew", "instance", in.Name, "error", err)
		}
	}
	c.watchHealth(in, g)
	c.watchBoot(in, g)
}

// sweepNetwork has only the running guests' ports and forwards left.
func (c *Controller) sweepNetwork(ctx context.Context) error {
	var keep []network.Port
	forwards := map[string][]network.Forward{}
	for _, in := range c.instances.All() {
		if g := c.live(in.ID); g == nil || c.exit(g) != nil {
			continue
		}
		ports, err := c.ports(in)
		if err != nil {
			return err
		}
		keep = append(keep, ports...)
		if f := c.forwards(in); len(f) > 0 {
			forwards[in.ID] = f
		}
	}
	return c.net.Sweep(ctx, keep, forwards)
}

// sweepVolumes deletes volumes without a record.
func (c *Controller) sweepVolumes(ctx context.Context) error {
	known := map[string]bool{}
	for _, in := range c.instances.All() {
		known[cmp.Or(in.Spec.Root.Pool, defaultPool)+"/"+rootVolume(in)] = true
	}
	for _, v := range c.volumes.All() {
		known[cmp.Or(v.Spec.Pool, defaultPool)+"/"+namedVolume(v.ID)] = true
	}
	var errs []error
	for _, p := range c.pools.All() {
		d, err := c.driver(p.Name)
		if err != nil {
			continue // logged when it could not be opened
		}
		ids, err := d.List(ctx)
		errs = append(errs, err)
		for _, id := range ids {
			ours := strings.HasPrefix(id, "i-") || strings.HasPrefix(id, "v-")
			if ours && !known[p.Name+"/"+id] {
				c.log.Info("deleting a volume without a record", "pool", p.Name, "volume", id)
				errs = append(errs, d.Delete(ctx, id))
			}
		}
	}
	return errors.Join(errs...)
}

// endStaleOperations ends the operations that nobody can go on with: those
// of callers that are gone, and of instances that are gone.
func (c *Controller) endStaleOperations() error {
	for _, op := range c.ops.col.All() {
		object := op.Labels[opObject]
		if op.Finished() || (object != "" && c.instances.ByID(object) != nil) {
			continue
		}
		err := error(api.Errorf(api.CodeUnavailable, "%s %s was interrupted by a restart of the daemon", op.Verb, op.Target).WithHint("run it again"))
		if op.Verb == "instance.delete" {
			err = nil
		}
		if err := c.commit(c.ops.col.Put(finished(op, "", err))); err != nil {
			return err
		}
	}
	return nil
}

// StopAll stops every guest, politely, for a host that goes down, and
// returns when they have ended and how is recorded. The next daemon starts
// those that come with the host.
func (c *Controller) StopAll(ctx context.Context, patience time.Duration) {
	c.workers.close()
	var stops sync.WaitGroup
	for _, in := range c.instances.All() {
		if g := c.live(in.ID); g != nil && c.exit(g) == nil {
			stops.Go(func() { c.stopForHost(ctx, in, g, patience) })
		}
	}
	stops.Wait()
}

func (c *Controller) stopForHost(ctx context.Context, in *api.Instance, g *guest, patience time.Duration) {
	t := &task{c: c, in: in}
	e, err := c.engineFor(in.Spec.Kind)
	if err != nil {
		return
	}
	if g.paused {
		_ = e.Resume(ctx, in.ID) // one that stays frozen is killed
	}
	if e.Signal(ctx, in.ID, t.stopSignal(ctx)) == nil {
		_ = t.await(ctx, g, time.Now().Add(patience))
	}
	if c.exit(g) == nil {
		if err := t.kill(ctx, g); err != nil {
			c.log.Error("a guest could not be stopped", "instance", in.Name, "error", err)
			return
		}
	}
	exit, again := *c.exit(g), in.Spec.Autostart || policyOf(in) == api.RestartAlways
	if err := c.recordStopped(ctx, in.ID, exit, g.Ended.UTC(), g.Lost, again); err != nil {
		c.log.Error("a guest's end could not be recorded", "instance", in.Name, "error", err)
	}
	c.emit("instance.stopped", &in.Meta, "the host goes down", nil)
}

// TakeDown removes from the host what stopped guests used, and closes the
// pools with their mounts. Records and data stay. It comes after StopAll.
func (c *Controller) TakeDown(ctx context.Context) error {
	var errs []error
	for _, in := range c.instances.All() {
		if _, err := c.engineFor(in.Spec.Kind); err == nil {
			errs = append(errs, (&task{c: c, in: in}).cleanUp(ctx))
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, d := range c.drivers {
		errs = append(errs, d.Unmount(ctx))
		delete(c.drivers, name)
	}
	return errors.Join(errs...)
}
