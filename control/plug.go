package control

import (
	"cmp"
	"context"
	"path/filepath"
	"slices"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/network"
)

// plugging is the change of a guest's devices from what it has to what its
// spec says. What the engine can't do while it runs waits for the next start.
type plugging struct {
	t *task
	// was is in force before, live in the end: its ports are kept true while
	// the changes are made.
	was, live *api.Instance
	mounts    []api.Mount // that the guest has
	had       []api.Port  // of the guest, or of one that doesn't run
	want      []api.Port  // by the new spec, in its order; nil if they don't change
	changes   []change
	portsWait bool
	why       map[string][]string // what waits, by path of the device, as in api.Change
}

// plug finds what changes of devices are to be made for live to be what its
// spec says. It reserves addresses, which drop gives back.
func (t *task) plug(ctx context.Context, g *guest, was, live *api.Instance) (*plugging, error) {
	p := &plugging{
		t: t, was: was, live: live, mounts: slices.Clone(was.Spec.Mounts), had: slotted(t.in.Status.NICs), why: map[string][]string{},
	}
	if !sameNICs(t.in.Spec, live.Spec) {
		if err := p.changePorts(ctx, g != nil); err != nil {
			return nil, err
		}
	}
	if g != nil {
		p.changeMounts(ctx)
	}
	if g != nil && g.paused && len(p.changes) > 0 {
		p.drop()
		return nil, api.Errorf(api.CodeUnavailable, "instance %q is paused, and can't take or give devices", live.Name).WithHint("`cleave resume %s` first", live.Name)
	}
	return p, nil
}

func sameNICs(a, b api.InstanceSpec) bool { return slices.Equal(nicsOf(a), nicsOf(b)) }

// changePorts finds the ports that go and come.
func (p *plugging) changePorts(ctx context.Context, running bool) error {
	c := p.t.c
	c.alloc.Lock()
	defer c.alloc.Unlock()
	var err error
	if p.want, err = c.portsFor(p.live, p.had, running); err != nil {
		return err
	}
	c.alloc.takePorts(p.live.ID, p.want)
	if !running {
		p.live.Status.NICs = p.want
		return nil
	}
	p.live.Status.NICs = p.had
	for _, port := range newPorts(p.had, p.want) {
		p.add("nics", port.Name, func() error { return p.takePort(ctx, port) }, func(ctx context.Context) error { return p.givePort(ctx, port, p.had) })
	}
	for _, port := range newPorts(p.want, p.had) {
		p.add("nics", port.Name, func() error { return p.givePort(ctx, port, p.want) }, func(ctx context.Context) error { return p.takePort(ctx, port) })
	}
	return nil
}

// add adds a change that can be undone, of a device in a list of the spec.
func (p *plugging) add(list, name string, do func() error, undo func(context.Context) error) {
	var refused error
	p.changes = append(p.changes, change{
		name: list + "." + name,
		apply: func(in *api.Instance) error {
			if in == p.was {
				ctx, cancel := context.WithTimeout(context.WithoutCancel(p.t.c.ctx), plugUndoTime)
				defer cancel()
				return undo(ctx)
			}
			if refused = do(); api.IsCode(refused, api.CodeNoResources) { // of those in a machine that runs
				refused = api.Errorf(api.CodeConflict, "%w", refused)
			}
			return refused
		},
		wait: func(*api.InstanceSpec, *api.InstanceSpec, string) bool {
			p.why[list+"."+name] = append(p.why[list+"."+name], p.t.c.named(api.AsError(refused).Message))
			p.portsWait = p.portsWait || list == "nics"
			return false
		},
	})
}

// settled completes live when all changes are made that can be made, on the
// way to now.
func (p *plugging) settled(now api.InstanceSpec) {
	p.live.Spec.Mounts = p.mounts
	if slices.Equal(p.mounts, now.Mounts) {
		p.live.Spec.Mounts = now.Mounts // empty and null are the same
	}
	if p.want == nil && !sameNICs(p.was.Spec, now) {
		p.live.Spec.NICs = p.was.Spec.NICs // it waits from before
	}
	if !p.portsWait {
		return
	}
	inForce := []api.NIC{}
	ports := p.live.Status.NICs
	told := make([]bool, len(ports))
	for _, spec := range []api.InstanceSpec{p.live.Spec, p.was.Spec} {
		nics := slices.Clone(nicsOf(spec))
		for i, k := range matched(nics, ports) {
			if k < 0 || told[k] {
				continue
			}
			if nicName(nics[i], len(inForce)) != ports[k].Name { // another place gives another name
				nics[i].Name = ports[k].Name
			}
			inForce, told[k] = append(inForce, nics[i]), true
		}
	}
	p.live.Spec.NICs = inForce
}

// order has the live ports in the order of the spec, unless some of them go
// later: the first has the default route and the published ports.
func (p *plugging) order() {
	var l []api.Port
	for _, i := range matched(nicsOf(p.live.Spec), p.live.Status.NICs) {
		if i >= 0 {
			l = append(l, p.live.Status.NICs[i])
		}
	}
	if len(l) == len(p.live.Status.NICs) {
		p.live.Status.NICs = l
	}
}

// note is what else is to be said of the change.
func (p *plugging) note() string {
	ports := p.live.Status.NICs
	if p.want == nil || len(ports) == 0 || len(p.had) == 0 || samePort(ports[0], p.had[0]) {
		return ""
	}
	first, later := ports[0], "from the next start on"
	named := first.Network != p.had[0].Network // by its network's gateway (network.ResolvConf)
	stayed := slices.ContainsFunc(p.had, func(o api.Port) bool { return samePort(o, first) })
	switch {
	case stayed && named:
		return "the default route is by " + first.Name + ", and the name server that of network " + first.Network + ", " + later
	case stayed:
		return "the default route is by " + first.Name + " " + later
	case named:
		return "the name server is that of network " + first.Network + " " + later
	}
	return ""
}

// recorded gives back the addresses that the new record doesn't have.
func (p *plugging) recorded() {
	if p.want == nil {
		return
	}
	c := p.t.c
	c.alloc.Lock()
	c.alloc.releasePorts(p.live.ID, slices.Concat(p.had, p.want))
	c.alloc.takePorts(p.live.ID, p.live.Status.NICs)
	c.alloc.Unlock()
	if c.live(p.live.ID) != nil {
		c.unname(p.t.in)
		c.name(p.live)
	}
}

// drop gives back what was reserved, when nothing came of it.
func (p *plugging) drop() {
	if p.want == nil {
		return
	}
	c := p.t.c
	c.alloc.Lock()
	defer c.alloc.Unlock()
	c.alloc.releasePorts(p.live.ID, p.want)
	c.alloc.takePorts(p.live.ID, p.had)
}

// at is a port as network and guest see it, by its place in a list.
func (p *plugging) at(ports []api.Port, port api.Port) (network.Port, engine.NIC, error) {
	in := *p.live
	in.Status.NICs = ports
	i := slices.IndexFunc(ports, func(o api.Port) bool { return samePort(o, port) })
	np, err := p.t.c.port(&in, i)
	if err != nil {
		return np, engine.NIC{}, err
	}
	nic, err := p.t.c.guestPort(&in, i, np)
	return np, nic, err
}

// givePort has the running guest get a port, whose place in list tells whether
// it has the default routes.
func (p *plugging) givePort(ctx context.Context, port api.Port, list []api.Port) error {
	c := p.t.c
	if i := index(p.live.Status.NICs, port.Name); i >= 0 && !samePort(port, p.live.Status.NICs[i]) {
		return api.Errorf(api.CodeConflict, "the guest has another port %s as long as it runs", port.Name)
	}
	np, nic, err := p.at(list, port)
	if err != nil {
		return err
	}
	e, err := c.engineFor(p.was.Spec.Kind)
	if err != nil {
		return err
	}
	switch e := e.(type) {
	case engine.Plugger:
		err = c.plugTap(ctx, e, p.live.ID, np, nic)
	case engine.Wirer:
		err = e.AttachLink(ctx, p.live.ID, nic, func(ctx context.Context, pid int) error { return taken(c.net.Attach(ctx, np, pid)) })
	default:
		return fixedWhile(e, "get a port")
	}
	if err != nil {
		if derr := c.net.Detach(context.WithoutCancel(ctx), np); derr != nil {
			c.log.Error("a port that could not be plugged is left", "instance", p.live.Name, "port", port.Name, "error", derr)
		}
		return err
	}
	port.Link = np.Link
	p.live.Status.NICs = append(slices.Clone(p.live.Status.NICs), port)
	p.order()
	return nil
}

// plugTap plugs a port into a machine. One that is plugged already has lost
// its other end: a daemon that died had made it.
func (c *Controller) plugTap(ctx context.Context, e engine.Plugger, id string, np network.Port, nic engine.NIC) error {
	for again := false; ; again = true {
		tap, err := c.net.OpenTap(ctx, np)
		if err != nil {
			return taken(err)
		}
		err = e.AttachNIC(ctx, id, nic, tap)
		tap.Close()
		if again || !api.IsCode(err, api.CodeExists) {
			return err
		}
		if err := e.DetachNIC(ctx, id, nic.Name); err != nil {
			return err
		}
	}
}

// taken tells a conflict about what somebody else has from one with the guest's
// state: waiting for its next start would not end it.
func taken(err error) error {
	if api.IsCode(err, api.CodeConflict) {
		e := *api.AsError(err)
		e.Code = api.CodeInUse
		return &e
	}
	return err
}

// takePort takes a port from the running guest.
func (p *plugging) takePort(ctx context.Context, port api.Port) error {
	c := p.t.c
	np, _, err := p.at([]api.Port{port}, port)
	if err != nil {
		return err
	}
	e, err := c.engineFor(p.was.Spec.Kind)
	if err != nil {
		return err
	}
	switch e := e.(type) {
	case engine.Plugger:
		err = e.DetachNIC(ctx, p.live.ID, port.Name)
	case engine.Wirer:
		err = e.DetachLink(ctx, p.live.ID, port.Name)
	default:
		return fixedWhile(e, "lose a port")
	}
	if err != nil && !api.IsCode(err, api.CodeNotFound) {
		return err
	}
	if err := c.net.Detach(ctx, np); err != nil {
		return err
	}
	p.live.Status.NICs = slices.DeleteFunc(slices.Clone(p.live.Status.NICs), func(o api.Port) bool { return samePort(o, port) })
	p.order()
	return nil
}

func fixedWhile(e engine.Engine, what string) error {
	return api.Errorf(api.CodeUnsupported, "a guest of kind %s can't %s while it runs", e.Kind(), what)
}

// changeMounts finds the mounts that go and come.
func (p *plugging) changeMounts(ctx context.Context) {
	old, now := p.t.in.Spec.Mounts, p.live.Spec.Mounts
	for _, m := range old {
		if !slices.Contains(now, m) && slices.Contains(p.mounts, m) {
			p.add("mounts", m.Target, func() error { return p.takeMount(ctx, m) }, func(ctx context.Context) error { return p.giveMount(ctx, m) })
		}
	}
	for _, m := range now {
		if !slices.Contains(old, m) && !slices.Contains(p.mounts, m) {
			p.add("mounts", m.Target, func() error { return p.giveMount(ctx, m) }, func(ctx context.Context) error { return p.takeMount(ctx, m) })
		}
	}
}

// giveMount has the running guest get a volume.
func (p *plugging) giveMount(ctx context.Context, m api.Mount) error {
	if slices.ContainsFunc(p.mounts, func(o api.Mount) bool { return o.Target == m.Target }) {
		return api.Errorf(api.CodeConflict, "the guest has another volume at %s as long as it runs", m.Target)
	}
	e, disk, err := p.disk(ctx, m)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(p.mounts, func(o api.Mount) bool { return o.Volume == m.Volume }) {
		return api.Errorf(api.CodeInUse, "volume %q is a disk, and %s has it already", m.Volume, p.live.Name).WithField("spec.mounts")
	}
	err = e.AttachDisk(ctx, p.live.ID, disk)
	if api.IsCode(err, api.CodeExists) { // of a daemon that died
		if err = e.DetachDisk(ctx, p.live.ID, disk.ID); err == nil {
			err = e.AttachDisk(ctx, p.live.ID, disk)
		}
	}
	if err != nil {
		return err
	}
	p.mounts = append(slices.Clone(p.mounts), m)
	return nil
}

// takeMount takes a volume from the running guest.
func (p *plugging) takeMount(ctx context.Context, m api.Mount) error {
	e, disk, err := p.disk(ctx, m)
	if err != nil {
		return err
	}
	err = e.DetachDisk(ctx, p.live.ID, disk.ID)
	if api.IsCode(err, api.CodeNotFound) {
		return api.Errorf(api.CodeUnsupported, "it was there at the start, and stays while the guest runs")
	}
	if err != nil {
		return err
	}
	p.mounts = slices.DeleteFunc(slices.Clone(p.mounts), func(o api.Mount) bool { return o == m })
	return p.t.c.releaseVolume(ctx, p.live.Project, m.Volume, p.live.ID)
}

// disk is a mount as an engine that plugs disks sees it.
func (p *plugging) disk(ctx context.Context, m api.Mount) (engine.Plugger, engine.Disk, error) {
	c := p.t.c
	e, err := c.engineFor(p.was.Spec.Kind)
	if err != nil {
		return nil, engine.Disk{}, err
	}
	plugger, ok := e.(engine.Plugger)
	switch {
	case !ok && !isMachine(p.was):
		return nil, engine.Disk{}, api.Errorf(api.CodeUnsupported, "nothing in a running container has the right to mount")
	case !ok:
		return nil, engine.Disk{}, fixedWhile(e, "get or lose a disk")
	}
	em, err := c.mount(ctx, p.live, m)
	if err != nil {
		return nil, engine.Disk{}, err
	}
	v, err := c.volumes.Get(p.live.Project, m.Volume)
	if err != nil {
		return nil, engine.Disk{}, err
	}
	return plugger, engine.Disk{
		ID: namedVolume(v.ID), Path: filepath.Join(em.Source, engine.VolumeDisk), Size: em.Size, ReadOnly: m.ReadOnly, Target: m.Target,
	}, nil
}

// plugUndoTime bounds the undoing of a change of devices: a guest may take
// its time.
const plugUndoTime = 4 * undoTime

// releaseVolume says that a guest uses a volume no more. It stays while
// another guest runs on it.
func (c *Controller) releaseVolume(ctx context.Context, project, name, except string) error {
	v, err := c.volumes.Get(project, name)
	if name == "" || err != nil || c.volumeLive(v, except) {
		return nil
	}
	d, err := c.driver(cmp.Or(v.Spec.Pool, defaultPool))
	if err != nil {
		return err
	}
	return d.Release(ctx, namedVolume(v.ID))
}

// allMounts are those of the spec and those that its guest has, which may be
// others until the next start.
func allMounts(in *api.Instance) []api.Mount {
	l := slices.Clone(in.Spec.Mounts)
	for _, m := range inForce(in).Spec.Mounts {
		if !slices.Contains(l, m) {
			l = append(l, m)
		}
	}
	return l
}
