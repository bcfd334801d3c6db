package control

import (
	"cmp"
	"context"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/network"
)

// spec resolves everything that the engine needs, and the ports to attach.
func (t *task) spec(ctx context.Context) (*engine.Spec, []network.Port, error) {
	c, in := t.c, t.in
	img, err := c.imageOf(ctx, in)
	if err != nil {
		return nil, nil, err
	}
	d, err := c.driver(cmp.Or(in.Spec.Root.Pool, defaultPool))
	if err != nil {
		return nil, nil, err
	}
	root, err := d.Path(ctx, rootVolume(in))
	if err != nil {
		return nil, nil, err
	}
	s := &engine.Spec{
		ID: in.ID, Name: in.Name, Project: in.Project, Epoch: in.Revision,
		Hostname: cmp.Or(in.Spec.Hostname, in.Name), System: in.Status.System,
		Root:    engine.Root{Dir: root, ReadOnly: in.Spec.Security.ReadOnlyRoot},
		UIDBase: in.Status.UIDBase, IDCount: idsPerGuest,
		Resources: resources(in), Sysctls: in.Spec.Sysctls, Ulimits: in.Spec.Ulimits,
		ShmSize: in.Spec.ShmSize, Security: in.Spec.Security,
	}
	if !ownSystem(in) {
		if err := sameArch(in, img); err != nil {
			return nil, nil, err
		}
		s.Image = engine.Image{Digest: img.Digest, EROFS: c.images.EROFS(img.Digest)}
		if s.Proc, err = process(in, img.Config); err != nil {
			return nil, nil, err
		}
	}
	if s.Mounts, err = c.mounts(ctx, in); err != nil {
		return nil, nil, err
	}
	ports, err := c.connect(in, s)
	if err != nil || !isMachine(in) {
		return s, ports, err
	}
	s.Root.Size = rootSize(in, img)
	s.Machine, err = t.machine(ctx, s, img)
	return s, ports, err
}

// resources are the limits with their defaults.
func resources(in *api.Instance) api.Resources {
	r := in.Spec.Resources
	if r.PIDs == 0 {
		r.PIDs = defaultPIDs
		if in.Status.System {
			r.PIDs = defaultSystemPIDs
		}
	}
	if isMachine(in) {
		r.Memory = memoryOf(in)
	}
	return r
}

// process combines the image's configuration and the user's wishes the way
// Docker does (Dockerfile reference, "Understand how CMD and ENTRYPOINT
// interact").
func process(in *api.Instance, cfg api.ImageConfig) (engine.Process, error) {
	entry, cmd := cfg.Entrypoint, cfg.Cmd
	if in.Spec.Entrypoint != nil {
		entry, cmd = in.Spec.Entrypoint, nil
	}
	if in.Spec.Command != nil {
		cmd = in.Spec.Command
	}
	p := engine.Process{
		Args:    slices.Concat(entry, cmd),
		User:    cmp.Or(in.Spec.User, cfg.User),
		WorkDir: cmp.Or(in.Spec.WorkDir, cfg.WorkDir, "/"),
		TTY:     in.Spec.TTY || in.Status.System,
		Stdin:   in.Spec.Stdin,
	}
	if len(p.Args) == 0 {
		return p, api.Errorf(api.CodeInvalid, "image %s says nothing to run and no command was given", in.Spec.Image).
			WithField("spec.command").WithHint("give one after --, like -- sh -c 'sleep infinity'")
	}
	if !path.IsAbs(p.WorkDir) {
		p.WorkDir = "/" + p.WorkDir
	}
	env := map[string]string{"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME": cmp.Or(in.Spec.Hostname, in.Name), "container": "cleave"}
	if in.Spec.TTY {
		env["TERM"] = "xterm"
	}
	for _, kv := range cfg.Env {
		if k, v, ok := strings.Cut(kv, "="); ok {
			env[k] = v
		}
	}
	maps.Copy(env, in.Spec.Env)
	for _, k := range slices.Sorted(maps.Keys(env)) {
		p.Env = append(p.Env, k+"="+env[k])
	}
	return p, nil
}

// mounts makes the instance's volumes reachable.
func (c *Controller) mounts(ctx context.Context, in *api.Instance) ([]engine.Mount, error) {
	var list []engine.Mount
	for _, m := range in.Spec.Mounts {
		em, err := c.mount(ctx, in, m)
		if err != nil {
			return nil, err
		}
		list = append(list, em)
	}
	// A mount below another one must come after it.
	slices.SortStableFunc(list, func(a, b engine.Mount) int { return strings.Compare(a.Target, b.Target) })
	return list, nil
}

func (c *Controller) mount(ctx context.Context, in *api.Instance, m api.Mount) (engine.Mount, error) {
	em := engine.Mount{Source: m.HostPath, Target: m.Target, ReadOnly: m.ReadOnly}
	if m.Volume == "" {
		return em, nil
	}
	v, err := c.volumes.Get(in.Project, m.Volume)
	if err != nil {
		return em, err
	}
	d, err := c.driver(cmp.Or(v.Spec.Pool, defaultPool))
	if err != nil {
		return em, err
	}
	if em.Source, err = d.Path(ctx, namedVolume(v.ID)); err != nil {
		return em, err
	}
	em.Owned, em.Disk = true, v.Spec.Type == api.VolumeDisk
	if em.Disk {
		em.Size = volumeSize(v)
		err = c.diskFree(v, in, m.ReadOnly)
	}
	return em, err
}

// diskFree refuses to let a second guest at a disk that one of them writes
// to: neither would know what the other does to the file system. Memory that
// is kept of a guest knows of its disks, too.
func (c *Controller) diskFree(v *api.Volume, in *api.Instance, readOnly bool) error {
	for _, other := range c.instances.All() {
		if other.ID == in.ID || other.Project != v.Project || c.live(other.ID) == nil && !other.Status.Saved {
			continue
		}
		for _, m := range allMounts(other) {
			switch {
			case m.Volume != v.Name || m.ReadOnly && readOnly:
			case other.Status.Saved:
				return kept(v, other).WithField("spec.mounts")
			default:
				return api.Errorf(api.CodeInUse, "volume %q is a disk, and %s has it", v.Name, other.Name).WithField("spec.mounts").
					WithHint("stop %s first, or mount it read-only in both", other.Name)
			}
		}
	}
	return nil
}

// kept is the refusal to touch a disk that a guest's kept memory knows of.
func kept(v *api.Volume, in *api.Instance) *api.Error {
	return api.Errorf(api.CodeInUse, "volume %q is a disk, and the memory that is kept of %s goes on with it as it is", v.Name, in.Name).
		WithHint("start %s and stop it without --save, or discard its memory: `cleave start %s --fresh`", in.Name, in.Name)
}

// releaseVolumes says that the instance's guest uses them no more. A named
// volume stays while another guest runs on it.
func (c *Controller) releaseVolumes(ctx context.Context, in *api.Instance) error {
	d, err := c.driver(cmp.Or(in.Spec.Root.Pool, defaultPool))
	if err != nil {
		return err
	}
	if err := d.Release(ctx, rootVolume(in)); err != nil {
		return err
	}
	for _, m := range allMounts(in) {
		if err := c.releaseVolume(ctx, in.Project, m.Volume, in.ID); err != nil {
			return err
		}
	}
	return nil
}
