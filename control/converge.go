package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/store"
)

// task is one look at an instance: what is wanted, and the operations that
// end when it is so.
type task struct {
	c    *Controller
	in   *api.Instance // shared, not to be changed
	ops  []*api.Operation
	wake <-chan struct{}
}

// converge makes one instance what its record and its open operations say.
// It is the only place that does, and runs once at a time per instance.
func (c *Controller) converge(id string, wake <-chan struct{}) {
	if c.workers.ctx.Err() != nil {
		return
	}
	in := c.instances.ByID(id)
	if in == nil {
		if err := c.endOrphans(c.ops.openFor(id)); err != nil {
			c.log.Error("operations of a deleted instance could not be ended", "id", id, "error", err)
		}
		return
	}
	t := &task{c: c, in: in, ops: c.ops.openFor(id), wake: wake}
	ctx, cancel := context.WithCancel(c.workers.ctx)
	defer cancel()
	for _, op := range t.ops {
		c.ops.onCancel(op, cancel)
	}
	err := t.run(ctx)
	if err != nil && c.workers.ctx.Err() == nil { // else the next daemon takes it up
		t.fail(err)
	}
}

// run takes the first step that is due; each ends with a commit that brings
// the next look if there is more to do.
func (t *task) run(ctx context.Context) error {
	g := t.c.live(t.in.ID)
	var exit *api.ExitStatus
	if g != nil {
		exit = t.c.exit(g)
	}
	if len(t.ops) == 0 && t.c.heldBack(t.in.ID) {
		return nil // what failed is not tried again for every change, its own record among them
	}
	switch {
	case t.in.Deleting != nil:
		return t.remove(ctx, g)
	case exit != nil:
		return t.ended(ctx, g, *exit)
	case t.c.unbootable(g) != "":
		return t.endUnbootable(ctx, g, t.c.unbootable(g))
	case t.has("instance.update") != nil:
		return t.update(ctx, g)
	case t.has("instance.copy") != nil:
		return t.copy(ctx, g)
	case t.in.Status.Phase == api.PhaseCreating:
		return t.provision(ctx)
	case g != nil && t.saving():
		return t.save(ctx, g)
	}
	switch want := t.in.Spec.Power; {
	case g != nil && (want == api.PowerStopped || t.replaces()):
		return t.stop(ctx, g)
	case g == nil && want != api.PowerStopped:
		if t.user() == nil && t.c.heldBack(t.in.ID) {
			return nil
		}
		return t.start(ctx)
	case g != nil && (want == api.PowerPaused) != g.paused:
		return t.pause(ctx, g, want == api.PowerPaused)
	case g != nil && t.in.Status.Phase != api.PhaseRunning && t.in.Status.Phase != api.PhasePaused:
		return t.running(g) // a crash came between the start and its record
	}
	return t.settle(nil)
}

// replaces tells whether the guest that runs is the one that a restart found
// running, and not the one that it started.
func (t *task) replaces() bool {
	restart := t.has("instance.restart")
	return restart != nil && restart.Labels[opReplaces] == epochOf(t.in)
}

// epochOf names the guest that an instance's record tells of.
func epochOf(in *api.Instance) string { return strconv.FormatInt(in.Status.Epoch, 10) }

// has finds an open operation of a kind.
func (t *task) has(verb string) *api.Operation {
	i := slices.IndexFunc(t.ops, func(op *api.Operation) bool { return op.Verb == verb })
	if i < 0 {
		return nil
	}
	return t.ops[i]
}

// user finds an operation by which a user wants the guest to run.
func (t *task) user() *api.Operation {
	for _, verb := range []string{"instance.launch", "instance.start", "instance.restart"} {
		if op := t.has(verb); op != nil {
			return op
		}
	}
	return nil
}

func (t *task) progress(step string, done, total int64) { t.c.ops.progress(t.ops, step, done, total) }

// settle records a new status and the end of the operations in one commit.
// Without a change and without operations it does nothing.
func (t *task) settle(change func(*api.Instance)) error {
	return t.settleWith(t.ops, change)
}

func (t *task) settleWith(ops []*api.Operation, change func(*api.Instance)) error {
	var ends []store.Op
	for _, op := range ops {
		ends = append(ends, t.c.ops.col.Put(finished(op, t.in.Name, nil)))
	}
	if change == nil && len(ends) == 0 {
		return nil
	}
	var err error
	if change == nil {
		err = t.c.commit(ends...)
	} else {
		_, err = t.c.instances.Update(context.WithoutCancel(t.c.ctx), t.in.ID, func(in *api.Instance) error {
			change(in)
			return nil
		}, func(*api.Instance) []store.Op { return ends })
	}
	if err != nil {
		return err
	}
	t.c.ops.wake(ops...)
	if len(ops) > 0 {
		t.c.pruneOperations()
	}
	return nil
}

// fail records why the work could not be done. What was being created is
// removed again; what was there before stays, stopped.
func (t *task) fail(err error) {
	c := t.c
	err = c.naming(err)
	c.log.Info("work on an instance failed", "instance", t.in.Name, "project", t.in.Project, "error", err)
	creating := t.in.Status.Phase == api.PhaseCreating
	var ends []store.Op
	for _, op := range t.ops {
		ends = append(ends, c.ops.col.Put(finished(op, "", err)))
	}
	var commitErr error
	if creating {
		commitErr = t.undoCreation(err, ends)
	} else {
		commitErr = t.recordFailure(err, ends)
	}
	if commitErr != nil {
		c.log.Error("a failure could not be recorded", "instance", t.in.Name, "error", commitErr)
		return
	}
	t.tellFailure(err)
	c.ops.wake(t.ops...)
}

// tellFailure emits the events of a failure: the instance's own, or those of
// operations that came to nothing while it is as it was.
func (t *task) tellFailure(err error) {
	if len(t.ops) == 0 || !cancelled(err) && !t.onlyOperations() && t.c.live(t.in.ID) == nil {
		t.c.emit("instance.failed", &t.in.Meta, err.Error(), nil)
		return
	}
	for _, op := range t.ops {
		if cancelled(err) {
			t.c.emit("operation.cancelled", &t.in.Meta, op.Verb, nil)
		} else {
			t.c.emit("operation.failed", &t.in.Meta, op.Verb+": "+err.Error(), nil)
		}
	}
}

// cancelled tells whether work ended because somebody wanted that.
func cancelled(err error) bool {
	return errors.Is(err, context.Canceled) || api.IsCode(err, api.CodeCancelled)
}

// onlyOperations tells whether nothing but operations is to be done that
// leave the guest as it is when they fail.
func (t *task) onlyOperations() bool {
	return len(t.ops) > 0 && !slices.ContainsFunc(t.ops, func(op *api.Operation) bool {
		return op.Verb != "instance.update" && op.Verb != "instance.copy" && op.Labels[opSave] == ""
	})
}

// undoCreation removes what there is of an instance that could not be
// created. While that fails the record stays, as that of a deletion.
func (t *task) undoCreation(cause error, ends []store.Op) error {
	ctx, cancel := context.WithTimeout(t.c.ctx, time.Minute)
	defer cancel()
	if err := t.dismantle(ctx); err != nil {
		t.c.log.Error("a failed creation could not be undone yet", "instance", t.in.Name, "error", err)
		return t.recordRemoval(fmt.Errorf("its creation failed (%s) and could not be undone: %w", cause, err), ends)
	}
	for range 3 {
		in := t.c.instances.ByID(t.in.ID)
		if in == nil {
			return nil
		}
		err := t.c.commit(append(slices.Clone(ends), t.c.instances.Delete(in))...)
		if err == nil {
			t.c.released(in)
		}
		if !api.IsCode(err, api.CodeConflict) {
			return err
		}
	}
	return api.Errorf(api.CodeConflict, "instance %q keeps changing", t.in.Name)
}

// recordRemoval records that the instance is to go and why it could not yet.
// The removal is tried again later, and at once when a user asks for it or
// the daemon starts.
func (t *task) recordRemoval(cause error, ends []store.Op) error {
	t.c.holdBack(t.in.ID, 0)
	_, err := t.c.instances.Update(context.WithoutCancel(t.c.ctx), t.in.ID, func(in *api.Instance) error {
		if in.Deleting == nil {
			now := store.Now()
			in.Deleting = &now
		}
		in.Status.Phase, in.Status.Error = api.PhaseDeleting, api.AsError(cause)
		return nil
	}, func(*api.Instance) []store.Op { return ends })
	return err
}

func (t *task) recordFailure(cause error, ends []store.Op) error {
	id := t.in.ID
	if t.in.Deleting != nil {
		return t.recordRemoval(cause, ends)
	}
	running := t.c.live(id) != nil
	again := !running && t.user() == nil && t.in.Spec.Power == api.PowerRunning && policyOf(t.in) != api.RestartNever
	if !t.onlyOperations() {
		t.c.holdBack(id, 0)
	}
	_, err := t.c.instances.Update(context.WithoutCancel(t.c.ctx), id, func(in *api.Instance) error {
		if t.onlyOperations() {
			return nil // the guest is as it was; the operation says why
		}
		if cancelled(cause) {
			if !running && in.Status.Phase != api.PhaseFailed {
				in.Status.Phase, in.Status.PID = api.PhaseStopped, 0
				in.Spec.Power = api.PowerStopped
			}
			return nil
		}
		in.Status.Error = api.AsError(cause)
		if !running {
			in.Status.Phase, in.Status.PID = api.PhaseFailed, 0
			if !again {
				in.Spec.Power = api.PowerStopped
			}
		}
		return nil
	}, func(*api.Instance) []store.Op { return ends })
	return err
}
