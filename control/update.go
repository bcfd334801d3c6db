package control

import (
	"cmp"
	"context"
	"reflect"
	"slices"
	"strings"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/store"
)

// updating is a change of an instance on its way.
type updating struct {
	t    *task
	g    *guest
	was  *api.Instance // what is in force
	now  *api.Instance // what is asked for
	live *api.Instance // what the guest has in the end
	plug *plugging
	undo []func() // what puts back what was done, the latest last
}

// update carries out a change of an instance: first on the running guest,
// then in the record, so that a limit which can't be set is never claimed.
// When a part fails, what was changed before is put back.
func (t *task) update(ctx context.Context, g *guest) error {
	op := t.has("instance.update")
	rest := t.ops
	t.ops = []*api.Operation{op} // a failure is this one's alone
	c, old := t.c, t.in
	now, err := c.changed(old, op)
	if err != nil {
		return err
	}
	u := &updating{t: t, g: g, now: now}
	defer u.putBack()
	if kindOf(old) != kindOf(now) {
		changed, drop, err := t.changeKind(ctx, g, now)
		if err != nil {
			return err
		}
		u.now, u.undo = changed, append(u.undo, drop)
	}
	u.resolve()
	if u.plug, err = t.plug(ctx, g, u.was, u.live); err != nil {
		return err
	}
	u.undo = append(u.undo, u.plug.drop)
	if ended, err := u.apply(ctx); ended || err != nil {
		return err // without a guest it is looked at again: there is nothing to ask any more
	}
	end := finished(op, old.Name, nil)
	if g != nil {
		end.Step = u.settle()
	}
	if err := u.record(ctx, end); err != nil {
		return err
	}
	u.undo = nil
	u.plug.recorded()
	if kindOf(old) != kindOf(u.now) {
		t.dropRoot(old)
	}
	c.ops.wake(op)
	c.emit("instance.updated", &old.Meta, end.Step, nil)
	if g != nil && !reflect.DeepEqual(old.Spec.Health, u.now.Spec.Health) {
		c.watchHealth(u.now, g)
	}
	if len(rest) > 1 {
		c.kick(old.ID)
	}
	return nil
}

// putBack undoes what was done.
func (u *updating) putBack() {
	for _, f := range slices.Backward(u.undo) {
		f()
	}
}

// resolve finds out what is in force and what is to be.
func (u *updating) resolve() {
	old, now := u.t.in, u.now
	u.was = inForce(old)
	disk := u.was.Spec.Root.Size
	u.was.Spec.Root = old.Spec.Root // the volume has grown already
	u.live = u.t.c.instances.Clone(now)
	// What doesn't change may wait from before.
	if old.Spec.Resources == now.Spec.Resources {
		u.live.Spec.Resources = u.was.Spec.Resources
	}
	if isMachine(old) && old.Spec.Root.Size == now.Spec.Root.Size {
		u.live.Spec.Root.Size = disk
	}
	if old.Spec.Machine.ISO == now.Spec.Machine.ISO {
		u.live.Spec.Machine.ISO = u.was.Spec.Machine.ISO
	}
}

// apply makes the changes that can be made now, unless the guest ends
// meanwhile.
func (u *updating) apply(ctx context.Context) (ended bool, err error) {
	c, g := u.t.c, u.g
	for _, change := range slices.Concat(u.plug.changes, u.t.changes(ctx, g, u.live)) {
		done, err := change.try(u.live, u.was)
		if api.IsCode(err, api.CodeUnavailable) && c.endsNow(ctx, g) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		if !done {
			continue
		}
		u.undo = append(u.undo, func() {
			if g != nil && c.exit(g) != nil {
				return
			}
			if err := change.apply(u.was); err != nil {
				c.log.Error("a change could not be put back", "instance", u.t.in.Name, "change", change.name, "error", err)
			}
		})
	}
	return false, nil
}

// settle leaves in live what the guest has until its next start, and says what
// waits.
func (u *updating) settle() string {
	old := u.t.in
	keepRestartFields(&u.live.Spec, &u.was.Spec)
	u.plug.settled(u.now.Spec)
	notes := []string{waiting(u.g, old, u.now, u.live, u.plug.why), u.plug.note()}
	if ownSystem(old) && old.Spec.Root.Size != u.now.Spec.Root.Size {
		notes = append(notes, "the partitions and file systems of its disk are its own to grow")
	}
	return strings.Join(slices.DeleteFunc(notes, func(s string) bool { return s == "" }), "; ")
}

// record writes down what is asked for, beside what the guest has, with the
// end of the operation.
func (u *updating) record(ctx context.Context, end *api.Operation) error {
	c, old, now := u.t.c, u.t.in, u.now
	_, err := c.instances.Update(ctx, old.ID, func(in *api.Instance) error {
		power := in.Spec.Power
		in.Labels, in.Spec = now.Labels, now.Spec
		in.Spec.Power = power
		in.Status.NICs = u.live.Status.NICs
		if u.g != nil {
			in.Status.Running = differing(&u.live.Spec, in.Spec)
		}
		if kindOf(old) != kindOf(now) {
			in.Status.Volume, in.Status.Kernel, in.Status.Engine = now.Status.Volume, "", ""
		}
		if c.healthCheck(in) == nil {
			in.Status.Health = ""
		}
		return nil
	}, func(*api.Instance) []store.Op { return []store.Op{c.ops.col.Put(end)} })
	return err
}

// change is one thing that can be altered now; applying what was in force
// before puts it back.
type change struct {
	name  string
	apply func(*api.Instance) error
	// wait, if there is one, is called when the engine says that it can't be
	// done while the guest runs as it does, and because of which field. It puts
	// back in live what is not to be changed now, and tells whether there is
	// something else to try.
	wait func(live, was *api.InstanceSpec, field string) bool
}

// try makes the change, and tells whether any of it could be made now.
func (ch *change) try(live, was *api.Instance) (done bool, err error) {
	for {
		err := ch.apply(live)
		if ch.wait == nil || !api.IsCode(err, api.CodeUnsupported) && !api.IsCode(err, api.CodeConflict) {
			return err == nil, err
		}
		if !ch.wait(&live.Spec, &was.Spec, api.AsError(err).Field) {
			return false, nil
		}
	}
}

// changes are those between the task's instance and now that take effect at
// once, in the order in which they are made.
func (t *task) changes(ctx context.Context, g *guest, now *api.Instance) []change {
	c, old := t.c, t.in
	var list []change
	img, _ := c.imageOf(ctx, old) // without it, the size can only be the default
	if kindOf(old) == kindOf(now) && rootSize(old, img) != rootSize(now, img) {
		list = append(list, change{name: "root size", apply: func(in *api.Instance) error {
			d, err := c.driver(cmp.Or(in.Spec.Root.Pool, defaultPool))
			if err != nil {
				return err
			}
			return called(d.Resize(ctx, rootVolume(in), rootQuota(in, img)), rootVolume(in), "root of "+in.Name)
		}})
	}
	if g == nil {
		return list
	}
	if !reflect.DeepEqual(old.Spec.Publish, now.Spec.Publish) || len(now.Spec.Publish) > 0 && !sameNICs(old.Spec, now.Spec) {
		list = append(list, change{name: "published ports", apply: func(in *api.Instance) error {
			return c.publish(ctx, in)
		}})
	}
	if isMachine(old) && rootSize(inForce(old), img) < rootSize(now, img) {
		disk := inForce(old).Spec.Root.Size
		list = append(list, change{
			"root disk", func(in *api.Instance) error { return c.growRoot(ctx, in, rootSize(in, img), g.paused) },
			func(live, _ *api.InstanceSpec, _ string) bool { live.Root.Size = disk; return false },
		})
	}
	if inForce(old).Spec.Resources != now.Spec.Resources {
		list = append(list, t.limits(ctx, g))
	}
	if inForce(old).Spec.Machine.ISO != now.Spec.Machine.ISO {
		list = append(list, change{
			"medium", func(in *api.Instance) error { return c.insert(ctx, in) },
			func(live, was *api.InstanceSpec, _ string) bool { live.Machine.ISO = was.Machine.ISO; return false },
		})
	}
	return list
}

// insert puts the medium that the instance names in the drive of its guest,
// or takes out what is in it.
func (c *Controller) insert(ctx context.Context, in *api.Instance) error {
	e, err := c.engineFor(in.Spec.Kind)
	if err != nil {
		return err
	}
	p, ok := e.(engine.Plugger)
	if !ok {
		return api.Errorf(api.CodeUnsupported, "kind %s can't change media while a guest runs", e.Kind())
	}
	path, err := c.medium(ctx, in)
	if err != nil {
		return err
	}
	return p.InsertMedium(ctx, in.ID, path)
}

// growRoot makes the root disk of a running machine larger.
func (c *Controller) growRoot(ctx context.Context, in *api.Instance, size api.Bytes, paused bool) error {
	e, err := c.engineFor(in.Spec.Kind)
	if err != nil {
		return err
	}
	g, ok := e.(engine.Grower)
	if !ok {
		return fixedWhile(e, "get a larger disk")
	}
	if paused {
		return api.Errorf(api.CodeConflict, "instance %q is paused: it can't make use of a larger disk", in.Name)
	}
	return g.GrowRoot(ctx, in.ID, size)
}

// limit sets all limits of a running guest.
func (c *Controller) limit(ctx context.Context, in *api.Instance) error {
	e, err := c.engineFor(in.Spec.Kind)
	if err != nil {
		return err
	}
	d, err := c.driver(cmp.Or(in.Spec.Root.Pool, defaultPool))
	if err != nil {
		return err
	}
	root, err := d.Path(ctx, rootVolume(in))
	if err != nil {
		return err
	}
	if err := e.Update(ctx, in.ID, resources(in), root); err != nil {
		return err
	}
	ports, err := c.ports(in)
	if err != nil {
		return err
	}
	for _, p := range ports {
		if err := c.net.SetRates(ctx, p); err != nil {
			return err
		}
	}
	return nil
}
