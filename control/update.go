package control

import (
	"cmp"
	"context"
	"maps"
	"reflect"
	"strings"

	"github.com/cleave-project/cleave/api"
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
	now, err := c.patched(old, []byte(op.Labels[opPatch]))
	if err != nil {
		return err
	}
	var undo []func()
	defer func() {
		for _, f := range undo {
			f()
		}
	}()
	for _, change := range t.changes(ctx, g, now) {
		if err := change.apply(now); err != nil {
			return err
		}
		undo = append([]func(){func() {
			if err := change.apply(old); err != nil {
				c.log.Error("a change could not be put back", "instance", old.Name, "change", change.name, "error", err)
			}
		}}, undo...)
	}
	var later []string
	if g != nil {
		later = needRestart(old.Spec, now.Spec)
	}
	end := finished(op, old.Name, nil)
	if len(later) > 0 {
		end.Step = "takes effect at the next start: " + strings.Join(later, ", ")
	}
	_, err = c.instances.Update(ctx, old.ID, func(in *api.Instance) error {
		power := in.Spec.Power
		in.Labels, in.Spec = now.Labels, now.Spec
		in.Spec.Power = power
		if c.healthCheck(in) == nil {
			in.Status.Health = ""
		}
		return nil
	}, func(*api.Instance) []store.Op { return []store.Op{c.ops.col.Put(end)} })
	if err != nil {
		return err
	}
	undo = nil
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

// change is one thing that can be altered now; applying the old instance
// puts it back.
type change struct {
	name  string
	apply func(*api.Instance) error
}

// changes are those between the task's instance and now that take effect at
// once, in the order in which they are made.
func (t *task) changes(ctx context.Context, g *guest, now *api.Instance) []change {
	c, old := t.c, t.in
	var list []change
	if size := cmp.Or(now.Spec.Root.Size, defaultRootSize); size != cmp.Or(old.Spec.Root.Size, defaultRootSize) {
		list = append(list, change{"root size", func(in *api.Instance) error {
			d, err := c.driver(cmp.Or(in.Spec.Root.Pool, defaultPool))
			if err != nil {
				return err
			}
			return called(d.Resize(ctx, rootVolume(in.ID), cmp.Or(in.Spec.Root.Size, defaultRootSize)), rootVolume(in.ID), "root of "+in.Name)
		}})
	}
	if g == nil {
		return list
	}
	if !reflect.DeepEqual(old.Spec.Publish, now.Spec.Publish) {
		list = append(list, change{"published ports", func(in *api.Instance) error {
			return c.publish(ctx, in)
		}})
	}
	if old.Spec.Resources != now.Spec.Resources {
		list = append(list, change{"limits", func(in *api.Instance) error { return c.limit(ctx, in) }})
	}
	return list
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
	root, err := d.Path(ctx, rootVolume(in.ID))
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

// needRestart names what changed that a running guest can't be given.
func needRestart(old, now api.InstanceSpec) []string {
	var l []string
	add := func(name string, same bool) {
		if !same {
			l = append(l, name)
		}
	}
	same := reflect.DeepEqual
	add("entrypoint", same(old.Entrypoint, now.Entrypoint))
	add("command", same(old.Command, now.Command))
	add("env", maps.Equal(old.Env, now.Env))
	add("user", old.User == now.User)
	add("workDir", old.WorkDir == now.WorkDir)
	add("hostname", old.Hostname == now.Hostname)
	add("tty", old.TTY == now.TTY)
	add("stdin", old.Stdin == now.Stdin)
	add("mounts", same(old.Mounts, now.Mounts))
	add("sysctls", maps.Equal(old.Sysctls, now.Sysctls))
	add("ulimits", maps.Equal(old.Ulimits, now.Ulimits))
	add("shmSize", old.ShmSize == now.ShmSize)
	add("security", same(old.Security, now.Security))
	return l
}
