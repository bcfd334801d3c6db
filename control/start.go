package control

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/cleave-project/cleave/api"
)

// rootVolume is the name of an instance's root volume. It is another one
// after a change of kind.
func rootVolume(in *api.Instance) string { return cmp.Or(in.Status.Volume, "i-"+in.ID) }

func namedVolume(id string) string { return "v-" + id }

// provision brings the image to this host and makes the root volume, then
// starts the guest if that is wanted. The record of what it found is written
// together with what comes of it.
func (t *task) provision(ctx context.Context) error {
	img, err := t.image(ctx)
	if err != nil {
		return err
	}
	// From here until the record names the digest nobody may collect it.
	t.c.imageUse.RLock()
	defer t.c.imageUse.RUnlock()
	in := t.c.instances.Clone(t.in)
	if img != nil {
		if img, err = t.c.images.Get(ctx, img.Digest); err != nil {
			return err
		}
		if err := suits(in, img); err != nil {
			return err
		}
		in.Status.Digest, in.Status.System = img.Digest, img.System
	}
	if in.Spec.Init != nil {
		in.Status.System = *in.Spec.Init
	}
	in.Status.System = in.Status.System || ownSystem(in)
	if err := t.makeRoot(ctx, img); err != nil {
		return err
	}
	t.in = in
	t.c.emit("instance.created", &in.Meta, "", map[string]string{"image": in.Status.Digest})
	if in.Spec.Power == api.PowerRunning {
		return t.start(ctx)
	}
	return t.settle(func(now *api.Instance) {
		now.Status.Digest, now.Status.System = in.Status.Digest, in.Status.System
		now.Status.Phase, now.Status.Error = api.PhaseStopped, nil
	})
}

// makeRoot makes the root volume, and in it the disk of a system of its own.
func (t *task) makeRoot(ctx context.Context, img *api.Image) error {
	d, err := t.c.driver(cmp.Or(t.in.Spec.Root.Pool, defaultPool))
	if err != nil {
		return err
	}
	id := rootVolume(t.in)
	t.progress("creating the root volume", 0, 0)
	if err := d.Create(ctx, id, rootQuota(t.in, img)); err != nil {
		return called(err, id, "root of "+t.in.Name)
	}
	if !isMachine(t.in) {
		return nil
	}
	dir, err := d.Path(ctx, id)
	if err != nil {
		return err
	}
	noCopyOnWrite(dir)
	if !ownSystem(t.in) {
		return nil
	}
	return t.makeRootDisk(ctx, dir, img)
}

// image finds the instance's image on this host, or pulls it; nil for an
// empty machine.
func (t *task) image(ctx context.Context) (*api.Image, error) {
	if t.in.Spec.Image == "" {
		return nil, nil
	}
	img, err := t.c.images.Find(ctx, t.in.Spec.Image, platformOf(t.in))
	if err == nil || !api.IsCode(err, api.CodeNotFound) {
		return img, err
	}
	img, perr := t.c.images.Pull(ctx, api.ImagePull{Reference: t.in.Spec.Image, Platform: platformOf(t.in)}, t.progress)
	if perr == nil || ctx.Err() != nil {
		return img, perr
	}
	if here, err := t.c.images.Get(ctx, t.in.Spec.Image); err == nil {
		if other := api.AsError(sameArch(t.in, here)); other != nil {
			return nil, api.Errorf(other.Code, "%w, and the other could not be had: %w", other, perr).WithField(other.Field).WithHint("%s", other.Hint)
		}
	}
	return nil, perr
}

// platformOf is what a registry is asked for; empty for the host's own.
func platformOf(in *api.Instance) string {
	if in.Spec.Machine.Arch == "" {
		return ""
	}
	return "linux/" + in.Spec.Machine.Arch
}

// start executes the guest.
func (t *task) start(ctx context.Context) (err error) {
	c, in := t.c, t.in
	e, err := c.engineFor(in.Spec.Kind)
	if err != nil {
		return err
	}
	if !c.exports.start(in.ID) {
		return api.Errorf(api.CodeBusy, "instance %q: its disk is being exported", in.Name).WithHint("start it when that has ended")
	}
	defer c.exports.done(in.ID)
	t.progress("starting", 0, 0)
	if t.goesOn() {
		t.in = savedSpec(in)
	} else if err := t.settlePorts(ctx); err != nil {
		return err
	}
	in = t.in
	spec, ports, err := t.spec(ctx)
	if err != nil {
		return err
	}
	if t.user() != nil {
		c.fresh(in.ID)
	}
	if len(in.Spec.Publish) > 0 {
		if err := c.publish(ctx, in); err != nil {
			return err
		}
	}
	c.wire(spec, ports)
	failed, err := t.restore(spec.Machine)
	if err != nil {
		return err
	}
	g := c.expect(in.ID)
	g.system = spec.System
	if spec.Machine != nil {
		g.kernel = spec.Machine.Kernel.Name
	}
	found, err := e.Start(ctx, spec)
	if err != nil {
		err = failed(err)
		c.forget(in.ID)
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		if cerr := t.cleanUp(undo); cerr != nil {
			c.log.Error("a failed start could not be undone", "instance", in.Name, "error", cerr)
		}
		return err
	}
	c.adopt(g, *found)
	c.attachWaiting(ctx, e, in.ID)
	return t.running(g)
}

// running records that the guest runs, and looks after what goes with it.
func (t *task) running(g *guest) error {
	c, was := t.c, t.in
	c.name(was)
	// Events come before the end of the operation: who has waited for that
	// can rely on having been told.
	c.emit("instance.started", &was.Meta, "", nil)
	started := g.Started.UTC()
	if was.Status.Saved {
		t.forgetMemory()
	}
	err := t.settle(func(in *api.Instance) {
		in.Status.Digest, in.Status.System = was.Status.Digest, was.Status.System
		in.Status.Phase, in.Status.Error, in.Status.Exit, in.Status.Stopped = api.PhaseRunning, nil, nil, nil
		in.Status.LastScreen = nil
		in.Status.PID, in.Status.Started, in.Status.Lost = g.PID, &started, g.Lost
		in.Status.Engine, in.Status.Epoch = cmp.Or(g.Engine, c.walls[kindOf(in)].Name()), was.Revision
		in.Status.Loosened, in.Status.Saved = loosened(in.Spec), false
		if !t.goesOn() {
			in.Status.Running = nil
		}
		in.Status.Kernel = cmp.Or(g.kernel, in.Status.Kernel)
		in.Status.Health = ""
		if c.healthCheck(in) != nil {
			in.Status.Health = "starting"
		}
		for i := range in.Status.NICs {
			in.Status.NICs[i].Link = linkName(in.ID, slot(in.Status.NICs, i))
		}
		if t.user() != nil {
			in.Status.Restarts = 0
			if in.Spec.Power == api.PowerStopped && !c.stopWanted(in.ID) {
				in.Spec.Power = api.PowerRunning
			}
		}
	})
	if err != nil {
		return err
	}
	c.watchHealth(was, g)
	c.watchBoot(was, g)
	return nil
}

func (c *Controller) stopWanted(id string) bool {
	return slices.ContainsFunc(c.ops.openFor(id), func(op *api.Operation) bool {
		return op.Verb == "instance.stop" || op.Verb == "instance.delete"
	})
}

// loosened lists what makes a guest's wall thinner than the default.
func loosened(s api.InstanceSpec) []string {
	var l []string
	for _, cp := range s.Security.AddCapabilities {
		l = append(l, "capability "+strings.TrimPrefix(cp, "CAP_"))
	}
	for _, m := range s.Mounts {
		if m.HostPath != "" && !m.ReadOnly {
			l = append(l, "writes to the host's "+m.HostPath)
		}
	}
	return l
}
