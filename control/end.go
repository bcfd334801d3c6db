package control

import (
	"cmp"
	"context"
	"errors"
	"os"
	"slices"
	"strconv"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/store"
)

// ended deals with a guest that has no process any more: cleans up after it
// and decides what comes next.
func (t *task) ended(ctx context.Context, g *guest, exit api.ExitStatus) error {
	if err := t.cleanUp(ctx); err != nil {
		return err
	}
	c, id := t.c, t.in.ID
	wanted := t.in.Spec.Power != api.PowerStopped
	// An init that reboots its system is ended by the kernel with SIGHUP
	// (reboot(2), "Behavior inside PID namespaces"): it wants to run again.
	reboot := (t.in.Status.System && exit.Signal == "SIGHUP") || exit.Reason == "reboot"
	saved := t.isSaved()
	goes := t.in.Spec.Ephemeral && !reboot && !saved
	again := wanted && !goes && !saved && (reboot || policyOf(t.in) == api.RestartAlways || (policyOf(t.in) == api.RestartOnFailure && exit.Code != 0))
	restart := t.has("instance.restart")
	if again && restart == nil {
		c.holdBack(id, g.Ended.Sub(g.Started))
	}
	c.forget(id)
	ended := g.Ended.UTC()
	// Operations that asked for the stop end here. A restart goes on, and
	// a start that came after the guest's end wants it back.
	var ends []*api.Operation
	for _, op := range t.ops {
		if op.Verb != "instance.start" && op.Verb != "instance.restart" && op.Verb != "instance.update" && op.Verb != "instance.copy" {
			ends = append(ends, op)
		}
	}
	how := describeExit(exit)
	switch {
	case reboot:
		how = "rebooted itself"
	case saved:
		how = "saved"
	}
	c.emit("instance.stopped", &t.in.Meta, how, map[string]string{"code": strconv.Itoa(exit.Code), "signal": exit.Signal, "oomKilled": strconv.FormatBool(exit.OOMKilled), "reason": exit.Reason})
	return t.settleWith(ends, func(in *api.Instance) {
		in.Status.Phase, in.Status.PID, in.Status.Health = api.PhaseStopped, 0, ""
		in.Status.Exit, in.Status.Stopped, in.Status.Lost, in.Status.Saved = &exit, &ended, g.Lost, saved
		if !saved {
			in.Status.Running = nil
		}
		for i := range in.Status.NICs {
			in.Status.NICs[i].Link = ""
		}
		if again && !reboot && restart == nil {
			in.Status.Restarts++
		}
		if wanted && !again && !t.c.wantedAgain(id) {
			in.Spec.Power = api.PowerStopped
		}
		if goes && in.Deleting == nil {
			now := store.Now()
			in.Deleting, in.Status.Phase = &now, api.PhaseDeleting
		}
	})
}

// wantedAgain tells whether a user asked for a start that is still open.
func (c *Controller) wantedAgain(id string) bool {
	return slices.ContainsFunc(c.ops.openFor(id), func(op *api.Operation) bool {
		return op.Verb == "instance.start" || op.Verb == "instance.restart"
	})
}

func describeExit(x api.ExitStatus) string {
	switch {
	case x.OOMKilled:
		return "killed: out of its memory"
	case x.Reason == "panic":
		return "its kernel panicked"
	case x.Reason == reasonNoBoot:
		return "its firmware found nothing to boot"
	case x.Reason == "crash":
		return "its monitor crashed"
	case x.Reason == "poweroff":
		return "powered itself off"
	case x.Signal != "":
		return "ended by " + x.Signal
	case x.Code < 0:
		return "ended, its exit status is lost"
	}
	return "exited with status " + strconv.Itoa(x.Code)
}

func policyOf(in *api.Instance) api.RestartPolicy { return cmp.Or(in.Spec.Restart, api.RestartNever) }

// cleanUp removes what the guest left on the host, but not its root volume.
func (t *task) cleanUp(ctx context.Context) error {
	e, err := t.c.engineFor(t.in.Spec.Kind)
	if err != nil {
		return err
	}
	if err := e.Clean(ctx, t.in.ID); err != nil {
		return err
	}
	if err := t.c.disconnect(ctx, t.in); err != nil {
		return err
	}
	return t.c.releaseVolumes(ctx, t.in)
}

// remove deletes the instance with all that belongs to it.
func (t *task) remove(ctx context.Context, g *guest) error {
	if len(t.ops) > 0 {
		t.c.fresh(t.in.ID) // a user wants it now
	}
	if g != nil && t.c.exit(g) == nil {
		if g.paused {
			if e, err := t.c.engineFor(t.in.Spec.Kind); err == nil {
				_ = e.Resume(ctx, t.in.ID) // a frozen process can't die on cgroup v1
			}
		}
		if err := t.kill(ctx, g); err != nil {
			return err
		}
	}
	t.progress("removing", 0, 0)
	if err := t.dismantle(ctx); err != nil {
		return err
	}
	var ends []store.Op
	ops := t.c.ops.openFor(t.in.ID)
	for _, op := range ops {
		ends = append(ends, t.c.ops.col.Put(orphaned(op)))
	}
	for {
		in := t.c.instances.ByID(t.in.ID)
		if in == nil {
			break
		}
		err := t.c.commit(append(slices.Clone(ends), t.c.instances.Delete(in))...)
		if err == nil {
			break
		}
		if !api.IsCode(err, api.CodeConflict) {
			return err
		}
		if now := t.c.instances.ByID(t.in.ID); now != nil && now.Revision == in.Revision {
			ends = nil // an operation ended otherwise meanwhile; the record goes all the same
		}
	}
	t.c.released(t.in)
	t.c.emit("instance.deleted", &t.in.Meta, "", nil)
	t.c.ops.wake(ops...)
	return nil
}

// orphaned is the record of an operation whose instance is gone: a deletion
// has what it wanted.
func orphaned(op *api.Operation) *api.Operation {
	if op.Verb == "instance.delete" {
		return finished(op, "", nil)
	}
	return finished(op, "", api.Errorf(api.CodeConflict, "instance %q was deleted", op.Target))
}

// endOrphans ends operations that were asked for while their instance was
// being removed, too late to be ended with it.
func (c *Controller) endOrphans(ops []*api.Operation) error {
	var errs []error
	for _, op := range ops {
		if err := c.commit(c.ops.col.Put(orphaned(op))); !api.IsCode(err, api.CodeConflict) { // else it has ended
			errs = append(errs, err)
		}
	}
	c.ops.wake(ops...)
	return errors.Join(errs...)
}

// dismantle removes everything of an instance but its record.
func (t *task) dismantle(ctx context.Context) error {
	if err := t.cleanUp(ctx); err != nil {
		return err
	}
	t.c.forget(t.in.ID)
	e, err := t.c.engineFor(t.in.Spec.Kind)
	if err != nil {
		return err
	}
	if err := e.Forget(ctx, t.in.ID); err != nil {
		return err
	}
	d, err := t.c.driver(cmp.Or(t.in.Spec.Root.Pool, defaultPool))
	if err != nil {
		return err
	}
	return errors.Join(d.Delete(ctx, rootVolume(t.in)), os.RemoveAll(t.c.machineDir(t.in.ID)))
}

// released gives back what was held for an instance that is gone: its ids
// and addresses, and how often it failed.
func (c *Controller) released(in *api.Instance) {
	c.fresh(in.ID)
	c.alloc.Lock()
	defer c.alloc.Unlock()
	c.alloc.release(in)
}
