package control

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/network"
)

func rootVolume(id string) string  { return "i-" + id }
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
	id := rootVolume(t.in.ID)
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
	img, err := t.c.images.Get(ctx, t.in.Spec.Image)
	if err == nil || !api.IsCode(err, api.CodeNotFound) {
		return img, err
	}
	return t.c.images.Pull(ctx, api.ImagePull{Reference: t.in.Spec.Image, Platform: platformOf(t.in)}, t.progress)
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
	t.progress("starting", 0, 0)
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

// wire has the engine attach the guest's ports in either way that there is.
func (c *Controller) wire(s *engine.Spec, ports []network.Port) {
	s.AttachNet = func(ctx context.Context, pid int) error {
		for _, p := range ports {
			if err := c.net.Attach(ctx, p, pid); err != nil {
				return err
			}
		}
		return nil
	}
	s.Taps = func(ctx context.Context) ([]*os.File, error) {
		var taps []*os.File
		for _, p := range ports {
			f, err := c.net.OpenTap(ctx, p)
			if err != nil {
				for _, f := range taps {
					f.Close()
				}
				return nil, err
			}
			taps = append(taps, f)
		}
		return taps, nil
	}
}

// running records that the guest runs, and looks after what goes with it.
func (t *task) running(g *guest) error {
	c, was := t.c, t.in
	c.name(was)
	// Events come before the end of the operation: who has waited for that
	// can rely on having been told.
	c.emit("instance.started", &was.Meta, "", nil)
	started := g.Started.UTC()
	err := t.settle(func(in *api.Instance) {
		in.Status.Digest, in.Status.System = was.Status.Digest, was.Status.System
		in.Status.Phase, in.Status.Error, in.Status.Exit, in.Status.Stopped = api.PhaseRunning, nil, nil, nil
		in.Status.PID, in.Status.Started, in.Status.Lost = g.PID, &started, g.Lost
		in.Status.Engine, in.Status.Epoch = c.walls[kindOf(in)].Name(), was.Revision
		in.Status.Loosened, in.Status.Saved = loosened(in.Spec), false
		in.Status.Kernel = cmp.Or(g.kernel, in.Status.Kernel)
		in.Status.Health = ""
		if c.healthCheck(in) != nil {
			in.Status.Health = "starting"
		}
		for i := range in.Status.NICs {
			in.Status.NICs[i].Link = linkName(in.ID, i)
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
	if was.Status.Saved {
		t.forgetMemory()
	}
	c.watchHealth(was, g)
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
	root, err := d.Path(ctx, rootVolume(in.ID))
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
		em := engine.Mount{Source: m.HostPath, Target: m.Target, ReadOnly: m.ReadOnly}
		if m.Volume != "" {
			v, err := c.volumes.Get(in.Project, m.Volume)
			if err != nil {
				return nil, err
			}
			d, err := c.driver(cmp.Or(v.Spec.Pool, defaultPool))
			if err != nil {
				return nil, err
			}
			if em.Source, err = d.Path(ctx, namedVolume(v.ID)); err != nil {
				return nil, err
			}
			em.Owned, em.Disk = true, v.Spec.Type == api.VolumeDisk
			if em.Disk {
				em.Size = volumeSize(v)
			}
		}
		list = append(list, em)
	}
	// A mount below another one must come after it.
	slices.SortStableFunc(list, func(a, b engine.Mount) int { return strings.Compare(a.Target, b.Target) })
	return list, nil
}

// releaseVolumes says that the instance's guest uses them no more. A named
// volume stays while another guest runs on it.
func (c *Controller) releaseVolumes(ctx context.Context, in *api.Instance) error {
	d, err := c.driver(cmp.Or(in.Spec.Root.Pool, defaultPool))
	if err != nil {
		return err
	}
	if err := d.Release(ctx, rootVolume(in.ID)); err != nil {
		return err
	}
	for _, m := range in.Spec.Mounts {
		v, err := c.volumes.Get(in.Project, m.Volume)
		if m.Volume == "" || err != nil || c.volumeLive(v, in.ID) {
			continue
		}
		if d, err = c.driver(cmp.Or(v.Spec.Pool, defaultPool)); err != nil {
			return err
		}
		if err := d.Release(ctx, namedVolume(v.ID)); err != nil {
			return err
		}
	}
	return nil
}

func linkName(id string, n int) string { return fmt.Sprintf("c%sn%d", id, n) }

// ports are the instance's NICs as the network package wants them.
func (c *Controller) ports(in *api.Instance) ([]network.Port, error) {
	var ports []network.Port
	for i, p := range in.Status.NICs {
		n, err := c.networkOf(in.Project, p.Network)
		if err != nil {
			return nil, err
		}
		mac, err := net.ParseMAC(p.MAC)
		if err != nil {
			return nil, err
		}
		ports = append(ports, network.Port{
			Network: n.ID, Instance: in.ID, Link: linkName(in.ID, i), Name: p.Name, MAC: mac,
			IPv4: addrOf(p.IPv4), IPv6: addrOf(p.IPv6), MTU: cmp.Or(n.Spec.MTU, 1500),
			In: in.Spec.Resources.NetIn, Out: in.Spec.Resources.NetOut,
		})
	}
	return ports, nil
}

func addrOf(prefix string) netip.Addr {
	p, err := netip.ParsePrefix(prefix)
	if err != nil {
		return netip.Addr{}
	}
	return p.Addr()
}

// connect fills in the network side of a spec.
func (c *Controller) connect(in *api.Instance, s *engine.Spec) ([]network.Port, error) {
	ports, err := c.ports(in)
	if err != nil {
		return nil, err
	}
	hosts := &strings.Builder{}
	hosts.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	for i, p := range ports {
		n, err := c.networkOf(in.Project, in.Status.NICs[i].Network)
		if err != nil {
			return nil, err
		}
		nic := engine.NIC{Name: p.Name, MAC: p.MAC, MTU: p.MTU}
		nic.IPv4, _ = netip.ParsePrefix(in.Status.NICs[i].IPv4)
		nic.IPv6, _ = netip.ParsePrefix(in.Status.NICs[i].IPv6)
		if i == 0 { // the first port carries the default routes
			nic.Gateway4, nic.Gateway6 = c.net.Gateway(n)
			s.Resolv = network.ResolvConf(n)
			for _, a := range []netip.Addr{p.IPv4, p.IPv6} {
				if a.IsValid() {
					fmt.Fprintf(hosts, "%s\t%s\n", a, s.Hostname)
				}
			}
		}
		s.NICs = append(s.NICs, nic)
	}
	if len(ports) == 0 {
		fmt.Fprintf(hosts, "127.0.1.1\t%s\n", s.Hostname)
	}
	s.Hosts = hosts.String()
	return ports, nil
}

// disconnect takes the instance off its networks.
func (c *Controller) disconnect(ctx context.Context, in *api.Instance) error {
	c.unname(in)
	if len(in.Spec.Publish) > 0 {
		if err := c.net.SetForwards(ctx, in.ID, nil); err != nil {
			return err
		}
	}
	ports, err := c.ports(in)
	if err != nil {
		return err
	}
	for _, p := range ports {
		if err := c.net.Detach(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// name makes the instance known by its name on its networks.
func (c *Controller) name(in *api.Instance) {
	for _, p := range in.Status.NICs {
		if n, err := c.networkOf(in.Project, p.Network); err == nil {
			var addrs []netip.Addr
			for _, a := range []netip.Addr{addrOf(p.IPv4), addrOf(p.IPv6)} {
				if a.IsValid() {
					addrs = append(addrs, a)
				}
			}
			c.net.SetName(n.ID, in.Name, addrs...)
		}
	}
}

func (c *Controller) unname(in *api.Instance) {
	for _, p := range in.Status.NICs {
		if n, err := c.networkOf(in.Project, p.Network); err == nil {
			c.net.DeleteName(n.ID, in.Name)
		}
	}
}

func signalOf(s syscall.Signal) string {
	if s >= 34 && s <= 64 { // glibc's SIGRTMIN, signal(7)
		return fmt.Sprintf("SIGRTMIN+%d", int(s)-34)
	}
	return unix.SignalName(s)
}
