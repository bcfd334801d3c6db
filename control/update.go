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
	var undo []func()
	defer func() {
		for _, f := range undo {
			f()
		}
	}()
	if kindOf(old) != kindOf(now) {
		changed, drop, err := t.changeKind(ctx, g, now)
		if err != nil {
			return err
		}
		now = changed
		undo = append(undo, drop)
	}
	was := inForce(old)
	disk := was.Spec.Root.Size
	was.Spec.Root = old.Spec.Root  // the volume has grown already
	live := c.instances.Clone(now) // with what the guest has in the end
	// What doesn't change may wait from before.
	if old.Spec.Resources == now.Spec.Resources {
		live.Spec.Resources = was.Spec.Resources
	}
	if isMachine(old) && old.Spec.Root.Size == now.Spec.Root.Size {
		live.Spec.Root.Size = disk
	}
	if old.Spec.Machine.ISO == now.Spec.Machine.ISO {
		live.Spec.Machine.ISO = was.Spec.Machine.ISO
	}
	plug, err := t.plug(ctx, g, was, live)
	if err != nil {
		return err
	}
	undo = append(undo, plug.drop)
	for _, change := range slices.Concat(plug.changes, t.changes(ctx, g, live)) {
		done, err := change.try(live, was)
		if api.IsCode(err, api.CodeUnavailable) && c.endsNow(ctx, g) {
			return nil // and is looked at again, when there is nothing to ask any more
		}
		if err != nil {
			return err
		}
		if !done {
			continue
		}
		undo = append([]func(){func() {
			if g != nil && c.exit(g) != nil {
				return
			}
			if err := change.apply(was); err != nil {
				c.log.Error("a change could not be put back", "instance", old.Name, "change", change.name, "error", err)
			}
		}}, undo...)
	}
	end := finished(op, old.Name, nil)
	if g != nil {
		keepRestartFields(&live.Spec, &was.Spec)
		plug.settled(now.Spec)
		end.Step = strings.Trim(waiting(g, old, now, live, plug.why)+"; "+plug.note(), "; ")
		if ownSystem(old) && old.Spec.Root.Size != now.Spec.Root.Size {
			end.Step = strings.TrimPrefix(end.Step+"; the partitions and file systems of its disk are its own to grow", "; ")
		}
	}
	_, err = c.instances.Update(ctx, old.ID, func(in *api.Instance) error {
		power := in.Spec.Power
		in.Labels, in.Spec = now.Labels, now.Spec
		in.Spec.Power = power
		in.Status.NICs = live.Status.NICs
		if g != nil {
			in.Status.Running = differing(&live.Spec, in.Spec)
		}
		if kindOf(old) != kindOf(now) {
			in.Status.Volume, in.Status.Kernel, in.Status.Engine = now.Status.Volume, "", ""
		}
		if c.healthCheck(in) == nil {
			in.Status.Health = ""
		}
		return nil
	}, func(*api.Instance) []store.Op { return []store.Op{c.ops.col.Put(end)} })
	if err != nil {
		return err
	}
	undo = nil
	plug.recorded()
	if kindOf(old) != kindOf(now) {
		t.dropRoot(old)
	}
	c.ops.wake(op)
	c.emit("instance.updated", &old.Meta, end.Step, nil)
	if g != nil && !reflect.DeepEqual(old.Spec.Health, now.Spec.Health) {
		c.watchHealth(now, g)
	}
	if len(rest) > 1 {
		c.kick(old.ID)
	}
	return nil
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
