package control

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"
	"syscall"
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
	in := c.instances.ByID(id)
	if in == nil || c.ctx.Err() != nil {
		return
	}
	t := &task{c: c, in: in, ops: c.ops.openFor(id), wake: wake}
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	for _, op := range t.ops {
		c.ops.onCancel(op, cancel)
	}
	err := t.run(ctx)
	if err != nil && c.ctx.Err() == nil {
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
	switch {
	case t.in.Deleting != nil:
		return t.remove(ctx, g)
	case exit != nil:
		return t.ended(ctx, g, *exit)
	case t.has("instance.update") != nil:
		return t.update(ctx, g)
	case t.in.Status.Digest == "":
		return t.provision(ctx)
	}
	restart := t.has("instance.restart")
	switch want := t.in.Spec.Power; {
	case g != nil && (want == api.PowerStopped || (restart != nil && g.Started.Before(restart.Created))):
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
	c.log.Info("instance failed", "instance", t.in.Name, "project", t.in.Project, "error", err)
	creating := t.in.Status.Phase == api.PhaseCreating
	var ends []store.Op
	for _, op := range t.ops {
		ends = append(ends, c.ops.col.Put(finished(op, "", err)))
	}
	var commitErr error
	if creating {
		commitErr = t.undoCreation(ends)
	} else {
		commitErr = t.recordFailure(err, ends)
	}
	if commitErr != nil {
		c.log.Error("a failure could not be recorded", "instance", t.in.Name, "error", commitErr)
		return
	}
	c.emit("instance.failed", &t.in.Meta, err.Error(), nil)
	c.ops.wake(t.ops...)
}

func (t *task) undoCreation(ends []store.Op) error {
	ctx, cancel := context.WithTimeout(t.c.ctx, time.Minute)
	defer cancel()
	if err := t.dismantle(ctx); err != nil {
		t.c.log.Error("a failed creation could not be undone; the next start of the daemon tries again", "instance", t.in.Name, "error", err)
	}
	for range 3 {
		in := t.c.instances.ByID(t.in.ID)
		if in == nil {
			return nil
		}
		err := t.c.commit(append(slices.Clone(ends), t.c.instances.Delete(in))...)
		if !api.IsCode(err, api.CodeConflict) {
			t.c.released(in)
			return err
		}
	}
	return api.Errorf(api.CodeConflict, "instance %q keeps changing", t.in.Name)
}

func (t *task) recordFailure(cause error, ends []store.Op) error {
	id := t.in.ID
	if t.in.Deleting != nil {
		// The deletion stays wanted; it is tried again at the next change
		// or start.
		_, err := t.c.instances.Update(context.WithoutCancel(t.c.ctx), id, func(in *api.Instance) error {
			in.Status.Error = api.AsError(cause)
			return nil
		}, func(*api.Instance) []store.Op { return ends })
		return err
	}
	running := t.c.live(id) != nil
	again := !running && t.user() == nil && t.in.Spec.Power == api.PowerRunning && policyOf(t.in) != api.RestartNever
	if again {
		t.c.holdBack(id, 0)
	}
	onlyUpdate := len(t.ops) > 0 && !slices.ContainsFunc(t.ops, func(op *api.Operation) bool { return op.Verb != "instance.update" })
	_, err := t.c.instances.Update(context.WithoutCancel(t.c.ctx), id, func(in *api.Instance) error {
		if onlyUpdate {
			return nil // the guest is as it was; the operation says why
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

// stop ends the guest: politely first, unless an operation says otherwise.
// A forced stop or deletion that comes while it waits is obeyed at once.
func (t *task) stop(ctx context.Context, g *guest) error {
	e, err := t.c.engineFor(t.in.Spec.Kind)
	if err != nil {
		return err
	}
	if g.paused {
		if err := e.Resume(ctx, t.in.ID); err != nil {
			return err
		}
		g.paused = false
	}
	t.progress("stopping", 0, 0)
	if wait := t.patience(g); wait > 0 && !t.forced() {
		// A guest that has ended meanwhile can't be signalled, and needn't be.
		if err := e.Signal(ctx, t.in.ID, t.stopSignal(ctx, g)); err != nil && !api.IsCode(err, api.CodeConflict) {
			return err
		}
		if err := t.await(ctx, g, time.Now().Add(wait)); err != nil {
			return err
		}
	}
	if t.c.exit(g) == nil {
		if err := t.kill(ctx, g); err != nil {
			return err
		}
	}
	return t.ended(ctx, g, *t.c.exit(g))
}

// kill ends every process of the guest and waits for it.
func (t *task) kill(ctx context.Context, g *guest) error {
	e, err := t.c.engineFor(t.in.Spec.Kind)
	if err != nil {
		return err
	}
	if err := e.Signal(ctx, t.in.ID, "SIGKILL"); err != nil {
		return err
	}
	select {
	case <-g.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(30 * time.Second):
		return api.Errorf(api.CodeTimeout, "instance %q: its processes did not end within 30 seconds of SIGKILL", t.in.Name).
			WithHint("one of them waits for the kernel, see its state with `ps -eo pid,stat,wchan` on the host")
	}
}

// await waits for the guest's end until a time, or until force is asked for.
func (t *task) await(ctx context.Context, g *guest, until time.Time) error {
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	for {
		select {
		case <-g.ended:
			return nil
		case <-timer.C:
			return nil
		case <-t.wake:
			if t.forced() {
				return nil
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// forced looks anew for an operation that allows no patience.
func (t *task) forced() bool {
	if in := t.c.instances.ByID(t.in.ID); in == nil || in.Deleting != nil {
		return true
	}
	for _, op := range t.c.ops.openFor(t.in.ID) {
		if op.Labels[opForce] == "true" {
			return true
		}
	}
	return false
}

// patience is the time between the stop signal and SIGKILL.
func (t *task) patience(g *guest) time.Duration {
	for _, op := range t.ops {
		if n, err := strconv.Atoi(op.Labels[opTimeout]); err == nil {
			return time.Duration(n) * time.Second
		}
	}
	switch {
	case t.in.Spec.StopSeconds != nil:
		return time.Duration(*t.in.Spec.StopSeconds) * time.Second
	case t.in.Status.System:
		return defaultSystemStop * time.Second
	}
	return defaultStop * time.Second
}

// pause freezes or thaws the guest.
func (t *task) pause(ctx context.Context, g *guest, freeze bool) error {
	e, err := t.c.engineFor(t.in.Spec.Kind)
	if err != nil {
		return err
	}
	phase, event, act := api.PhaseRunning, "instance.resumed", e.Resume
	if freeze {
		phase, event, act = api.PhasePaused, "instance.paused", e.Pause
	}
	if err := act(ctx, t.in.ID); err != nil {
		return err
	}
	g.paused = freeze
	t.c.emit(event, &t.in.Meta, "", nil)
	return t.settle(func(in *api.Instance) { in.Status.Phase = phase })
}

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
	reboot := t.in.Status.System && exit.Signal == "SIGHUP"
	again := wanted && (reboot || policyOf(t.in) == api.RestartAlways || (policyOf(t.in) == api.RestartOnFailure && exit.Code != 0))
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
		if op.Verb != "instance.start" && op.Verb != "instance.restart" && op.Verb != "instance.update" {
			ends = append(ends, op)
		}
	}
	how := describeExit(exit)
	if reboot {
		how = "rebooted itself"
	}
	c.emit("instance.stopped", &t.in.Meta, how, map[string]string{"code": strconv.Itoa(exit.Code), "signal": exit.Signal, "oomKilled": strconv.FormatBool(exit.OOMKilled)})
	return t.settleWith(ends, func(in *api.Instance) {
		in.Status.Phase, in.Status.PID, in.Status.Health = api.PhaseStopped, 0, ""
		in.Status.Exit, in.Status.Stopped, in.Status.Lost = &exit, &ended, g.Lost
		for i := range in.Status.NICs {
			in.Status.NICs[i].Link = ""
		}
		if again && !reboot && restart == nil {
			in.Status.Restarts++
		}
		if wanted && !again && !t.c.wantedAgain(id) {
			in.Spec.Power = api.PowerStopped
		}
		if in.Spec.Ephemeral && !reboot && in.Deleting == nil {
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
		var err error
		if op.Verb != "instance.delete" {
			err = api.Errorf(api.CodeConflict, "instance %q was deleted", t.in.Name)
		}
		ends = append(ends, t.c.ops.col.Put(finished(op, "", err)))
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

// dismantle removes everything of an instance but its record.
func (t *task) dismantle(ctx context.Context) error {
	if err := t.cleanUp(ctx); err != nil {
		return err
	}
	t.c.forget(t.in.ID)
	t.c.fresh(t.in.ID)
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
	return d.Delete(ctx, rootVolume(t.in.ID))
}

// released gives back the ids and addresses of an instance that is gone.
func (c *Controller) released(in *api.Instance) {
	c.alloc.Lock()
	defer c.alloc.Unlock()
	c.alloc.release(in)
}

// stopSignal is what a polite stop sends.
func (t *task) stopSignal(ctx context.Context, g *guest) string {
	if s := t.in.Spec.StopSignal; s != "" {
		return signalName(s)
	}
	if img, err := t.c.images.Get(ctx, t.in.Status.Digest); err == nil && img.Config.StopSignal != "" {
		return signalName(img.Config.StopSignal)
	}
	if t.in.Status.System {
		return "SIGRTMIN+3" // systemd.special(7): halt.target; other inits say theirs in the image
	}
	return "SIGTERM"
}

// signalName accepts what images carry: SIGTERM, TERM or 15.
func signalName(s string) string {
	s = strings.ToUpper(s)
	if n, err := strconv.Atoi(s); err == nil {
		return signalOf(syscall.Signal(n))
	}
	if !strings.HasPrefix(s, "SIG") {
		return "SIG" + s
	}
	return s
}
