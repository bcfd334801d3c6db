package control

import (
	"cmp"
	"context"
	"maps"
	"reflect"
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
	if kindOf(old) != kindOf(now) {
		changed, drop, err := t.changeKind(ctx, g, now)
		if err != nil {
			return err
		}
		now = changed
		undo = append(undo, drop)
	}
	var later []string
	for _, change := range t.changes(ctx, g, now) {
		err := change.apply(now)
		if change.mayWait && (api.IsCode(err, api.CodeUnsupported) || api.IsCode(err, api.CodeConflict)) {
			later = append(later, change.name)
			continue
		}
		if err != nil {
			return err
		}
		undo = append([]func(){func() {
			if err := change.apply(old); err != nil {
				c.log.Error("a change could not be put back", "instance", old.Name, "change", change.name, "error", err)
			}
		}}, undo...)
	}
	if g != nil {
		later = append(later, needRestart(old.Spec, now.Spec)...)
	}
	end := finished(op, old.Name, nil)
	if len(later) > 0 {
		end.Step = "takes effect at the next start: " + strings.Join(later, ", ")
	}
	_, err = c.instances.Update(ctx, old.ID, func(in *api.Instance) error {
		power := in.Spec.Power
		in.Labels, in.Spec = now.Labels, now.Spec
		in.Spec.Power = power
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

// change is one thing that can be altered now; applying the old instance
// puts it back.
type change struct {
	name  string
	apply func(*api.Instance) error
	// mayWait is for the next start when the engine says that it can't be done
	// while the guest runs.
	mayWait bool
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
	if !reflect.DeepEqual(old.Spec.Publish, now.Spec.Publish) {
		list = append(list, change{name: "published ports", apply: func(in *api.Instance) error {
			return c.publish(ctx, in)
		}})
	}
	if old.Spec.Resources != now.Spec.Resources {
		list = append(list, change{"limits", func(in *api.Instance) error { return c.limit(ctx, in) }, isMachine(old)})
	}
	if old.Spec.Machine.ISO != now.Spec.Machine.ISO {
		list = append(list, change{"machine.iso", func(in *api.Instance) error { return c.insert(ctx, in) }, true})
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

// changesMachine tells whether a guest that goes on from its memory would
// find another machine than it was in.
func changesMachine(old, now api.InstanceSpec) bool {
	return len(needRestart(old, now)) > 0 || old.Resources != now.Resources || old.Root != now.Root || old.Machine.ISO != now.Machine.ISO
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
	was, is := old.Machine, now.Machine
	was.ISO, is.ISO = "", ""
	add("machine", same(was, is))
	return l
}
