package control

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/store"
)

// Defaults of what neither the user nor the image says.
const (
	defaultPool        = "default"
	defaultNetwork     = "default"
	defaultRootSize    = 10 * api.GiB
	defaultDiskSize    = 10 * api.GiB // of a volume
	defaultStop        = 10           // seconds
	defaultSystemStop  = 60
	defaultPIDs        = 4096
	defaultSystemPIDs  = 32768
	defaultHealthEvery = 30 // seconds
	defaultHealthTries = 3
)

// Instance finds an instance by name.
func (c *Controller) Instance(project, name string) (*api.Instance, error) {
	project, err := projectOf(project)
	if err != nil {
		return nil, err
	}
	in, err := c.instances.Get(project, name)
	if err != nil {
		return nil, err
	}
	return c.inspected(in), nil
}

// inspected is a running machine with what can only be seen by looking.
func (c *Controller) inspected(in *api.Instance) *api.Instance {
	if !isMachine(in) || c.live(in.ID) == nil {
		return in
	}
	e, err := c.engineFor(in.Spec.Kind)
	if err != nil {
		return in
	}
	i, ok := e.(engine.Inspector)
	if !ok {
		return in
	}
	v, err := i.Inspect(c.ctx, in.ID)
	if err != nil {
		return in // it is ending
	}
	n := *in
	n.Status.Accel, n.Status.Agent, n.Status.Reboots = v.Accel, v.Agent, v.Reboots
	return &n
}

// Instances lists instances by project and name, in pages.
func (c *Controller) Instances(project string, q Query) (api.List[api.Instance], error) {
	project, err := projectOf(project)
	if err != nil {
		return api.List[api.Instance]{}, err
	}
	list := api.List[api.Instance]{Items: []api.Instance{}}
	for _, in := range c.instances.All() {
		key := in.Project + "/" + in.Name
		if (!q.AllProjects && in.Project != project) || key <= q.Cursor || !q.matches(in) {
			continue
		}
		if q.Limit > 0 && len(list.Items) == q.Limit {
			last := list.Items[q.Limit-1]
			list.Next = last.Project + "/" + last.Name
			break
		}
		list.Items = append(list.Items, *c.inspected(in))
	}
	return list, nil
}

func (q *Query) matches(in *api.Instance) bool {
	if (q.Phase != "" && in.Status.Phase != q.Phase) || !strings.HasPrefix(in.Name, q.Prefix) {
		return false
	}
	for k, v := range q.Labels {
		if in.Labels[k] != v {
			return false
		}
	}
	return true
}

// CreateInstance records a new instance and has it made, and started if
// start. When that fails nothing of it is left.
func (c *Controller) CreateInstance(ctx context.Context, in *api.Instance, start bool) (*api.Operation, error) {
	verb := "instance.create"
	if start {
		verb = "instance.launch"
	}
	if op := c.ops.repeated(ctx, verb); op != nil {
		return op, nil
	}
	project, err := projectOf(in.Project)
	if err != nil {
		return nil, err
	}
	o := &api.Instance{
		Meta:   api.Meta{ID: store.NewID(), Project: project, Name: in.Name, Labels: in.Labels, Created: store.Now()},
		Spec:   in.Spec,
		Status: api.InstanceStatus{Phase: api.PhaseCreating, Host: c.host},
	}
	switch {
	case start:
		o.Spec.Power = api.PowerRunning
	case o.Spec.Power == "":
		o.Spec.Power = api.PowerStopped
	}
	if err := c.completed(ctx, o); err != nil {
		return nil, err
	}
	if err := c.validate(o); err != nil {
		return nil, err
	}
	if err := c.rootFits(ctx, o); err != nil {
		return nil, err
	}
	if _, err := c.instances.Get(project, o.Name); err == nil {
		return nil, api.Errorf(api.CodeExists, "instance %q already exists", o.Name).WithField("name").
			WithHint("choose another name, or `cleave delete %s` first", o.Name)
	}
	op := newOperation(ctx, project, verb, o.Name, o.ID)
	if op.Step, err = c.fitsDrive(ctx, o); err != nil {
		return nil, err
	}
	c.alloc.Lock()
	err = c.assign(o)
	if err == nil {
		if err = c.store.Commit(ctx, c.ops.col.Create(op), c.instances.Create(o)); err != nil {
			c.alloc.release(o)
		}
	}
	c.alloc.Unlock()
	if err != nil {
		return nil, err
	}
	c.kick(o.ID)
	return c.ops.show(op), nil
}

// validate checks an instance against the rules and against this host.
func (c *Controller) validate(in *api.Instance) error {
	if err := api.ValidateName("instance", in.Name); err != nil {
		return err
	}
	if err := api.ValidateLabels(in.Labels); err != nil {
		return err
	}
	if err := in.Spec.Validate(); err != nil {
		return err
	}
	if err := c.fitsHost(in.Spec.Resources); err != nil {
		return err
	}
	if _, err := c.driver(cmp.Or(in.Spec.Root.Pool, defaultPool)); err != nil {
		return err
	}
	for i, m := range in.Spec.Mounts {
		if m.Volume != "" {
			if _, err := c.volumes.Get(in.Project, m.Volume); err != nil {
				return api.AsError(err).WithField(fmt.Sprintf("spec.mounts[%d].volume", i)).WithHint("`cleave volume create %s` makes it", m.Volume)
			}
			continue
		}
		if _, err := os.Stat(m.HostPath); err != nil {
			return api.Errorf(api.CodeNotFound, "host path %s: %w", m.HostPath, err).WithField(fmt.Sprintf("spec.mounts[%d].hostPath", i))
		}
	}
	if err := c.able(c.ctx, in); err != nil {
		return err
	}
	return c.namedKernel(in)
}

// fitsHost refuses limits that this host could never give.
func (c *Controller) fitsHost(r api.Resources) error {
	if n := runtime.NumCPU(); r.CPUs > float64(n) {
		return api.Errorf(api.CodeNoResources, "%v CPUs asked for, this host has %d", r.CPUs, n).WithField("spec.resources.cpus").WithHint("give at most %d", n)
	}
	if m := hostMemory(); r.Memory > m {
		return api.Errorf(api.CodeNoResources, "%s of memory asked for, this host has %s", r.Memory, m).WithField("spec.resources.memory").WithHint("give at most %s", m)
	}
	if n := lastCPU(r.CPUSet); n >= runtime.NumCPU() {
		return api.Errorf(api.CodeNoResources, "CPU %d asked for, this host has CPUs 0 to %d", n, runtime.NumCPU()-1).WithField("spec.resources.cpuSet")
	}
	return nil
}

// lastCPU is the highest CPU of a validated list, -1 of an empty one.
func lastCPU(set string) int {
	last := -1
	for _, s := range strings.FieldsFunc(set, func(r rune) bool { return r == ',' || r == '-' }) {
		if n, err := strconv.Atoi(s); err == nil {
			last = max(last, n)
		}
	}
	return last
}

// PowerInstance records the power that is wanted and has it made so.
func (c *Controller) PowerInstance(ctx context.Context, project, name string, req PowerRequest) (*api.Operation, error) {
	verb := "instance." + req.Action
	if op := c.ops.repeated(ctx, verb); op != nil {
		return op, nil
	}
	power, ok := map[string]api.Power{
		"start": api.PowerRunning, "stop": api.PowerStopped, "restart": api.PowerRunning,
		"pause": api.PowerPaused, "resume": api.PowerRunning,
	}[req.Action]
	if !ok {
		return nil, api.Errorf(api.CodeInvalid, "%q is not a change of power", req.Action).WithHint("use start, stop, restart, pause or resume")
	}
	in, err := c.Instance(project, name)
	if err != nil {
		return nil, err
	}
	op := newOperation(ctx, in.Project, verb, name, in.ID)
	if req.Save && req.Force {
		return nil, api.Errorf(api.CodeInvalid, "a stop of %q can't both keep its memory and be forced", name).WithField("save").WithHint("give either save or force")
	}
	if req.Save && req.Action == "stop" {
		if err := c.canSave(ctx, in); err != nil {
			return nil, err
		}
		op.Labels[opSave] = "true"
	}
	if err := c.canPause(ctx, in, req.Action); err != nil {
		return nil, err
	}
	op.Labels[opForce], op.Labels[opFresh] = strconv.FormatBool(req.Force), strconv.FormatBool(req.Fresh)
	if req.TimeoutSeconds != nil {
		op.Labels[opTimeout] = strconv.Itoa(max(*req.TimeoutSeconds, 0))
	}
	_, err = c.instances.Update(ctx, in.ID, func(in *api.Instance) error {
		if in.Deleting != nil {
			return api.Errorf(api.CodeConflict, "instance %q is being deleted", name)
		}
		running := in.Status.Phase == api.PhaseRunning || in.Status.Phase == api.PhasePaused
		if !running && (req.Action == "pause" || req.Action == "resume" || req.Save) {
			return notRunning(in)
		}
		if !req.Save { // one that can't be saved runs on
			in.Spec.Power = power
		}
		op.Labels[opReplaces] = epochOf(in)
		return nil
	}, func(*api.Instance) []store.Op { return []store.Op{c.ops.col.Create(op).Always()} })
	if err != nil {
		return nil, err
	}
	c.kick(in.ID)
	return c.ops.show(op), nil
}

// canPause refuses to freeze what can't be frozen.
func (c *Controller) canPause(ctx context.Context, in *api.Instance, action string) error {
	if action != "pause" {
		return nil
	}
	w, caps, err := c.usable(ctx, in.Spec.Kind)
	if err != nil || caps.Pause {
		return err
	}
	return api.Errorf(api.CodeUnsupported, "kind %s can't freeze a guest", w.Kind()).
		WithHint("%s", c.kindsThat(ctx, func(caps engine.Capabilities) bool { return caps.Pause }))
}

func notRunning(in *api.Instance) error {
	return api.Errorf(api.CodeConflict, "instance %q is %s", in.Name, in.Status.Phase).WithHint("`cleave start %s` starts it", in.Name)
}

// DeleteInstance has an instance removed with its root volume. A running one
// needs force.
func (c *Controller) DeleteInstance(ctx context.Context, project, name string, force bool, revision int64) (*api.Operation, error) {
	if op := c.ops.repeated(ctx, "instance.delete"); op != nil {
		return op, nil
	}
	in, err := c.Instance(project, name)
	if err != nil {
		return nil, err
	}
	op := newOperation(ctx, in.Project, "instance.delete", name, in.ID)
	_, err = c.instances.Update(ctx, in.ID, func(in *api.Instance) error {
		if err := checkRevision(&in.Meta, revision); err != nil {
			return err
		}
		if c.live(in.ID) != nil && !force && in.Deleting == nil {
			return api.Errorf(api.CodeConflict, "instance %q is %s", name, in.Status.Phase).WithHint("stop it first, or delete it with --force")
		}
		if in.Deleting == nil {
			now := store.Now()
			in.Deleting = &now
		}
		in.Status.Phase = api.PhaseDeleting
		return nil
	}, func(*api.Instance) []store.Op { return []store.Op{c.ops.col.Create(op).Always()} })
	if err != nil {
		return nil, err
	}
	c.cancelCreation(in.ID)
	c.kick(in.ID)
	return c.ops.show(op), nil
}

// cancelCreation stops work that a deletion makes pointless.
func (c *Controller) cancelCreation(id string) {
	for _, op := range c.ops.openFor(id) {
		if op.Verb == "instance.create" || op.Verb == "instance.launch" {
			// It may have ended by itself meanwhile, which is as good.
			_, _ = c.CancelOperation(c.ctx, op.ID)
		}
	}
}

// RenameInstance gives an instance another name. Its guest keeps the host
// name that it was started with; DNS follows at once.
func (c *Controller) RenameInstance(ctx context.Context, project, name, to string, revision int64) (*api.Operation, error) {
	if op := c.ops.repeated(ctx, "instance.rename"); op != nil {
		return op, nil
	}
	if err := api.ValidateName("instance", to); err != nil {
		return nil, err
	}
	in, err := c.Instance(project, name)
	if err != nil {
		return nil, err
	}
	op := finished(newOperation(ctx, in.Project, "instance.rename", name, in.ID), to, nil)
	now, err := c.instances.Update(ctx, in.ID, func(in *api.Instance) error {
		if err := checkRevision(&in.Meta, revision); err != nil {
			return err
		}
		if in.Deleting != nil {
			return api.Errorf(api.CodeConflict, "instance %q is being deleted", name)
		}
		in.Name = to
		return nil
	}, func(*api.Instance) []store.Op { return []store.Op{c.ops.col.Create(op)} })
	if err != nil {
		return nil, err
	}
	if c.live(in.ID) != nil {
		c.unname(in)
		c.name(now)
	}
	c.emit("instance.renamed", &now.Meta, name+" is now "+to, nil)
	return c.ops.show(op), nil
}

// PatchInstance changes labels and spec by a JSON merge patch (RFC 7386).
// What can change in a running guest takes effect before the operation ends;
// the rest waits for the next start and is named in its result.
func (c *Controller) PatchInstance(ctx context.Context, project, name string, revision int64, patch []byte) (*api.Operation, error) {
	if op := c.ops.repeated(ctx, "instance.update"); op != nil {
		return op, nil
	}
	in, err := c.Instance(project, name)
	if err != nil {
		return nil, err
	}
	if err := checkRevision(&in.Meta, revision); err != nil {
		return nil, err
	}
	if _, err := c.patched(in, patch); err != nil {
		return nil, err
	}
	op := newOperation(ctx, in.Project, "instance.update", name, in.ID)
	op.Labels[opPatch] = string(patch)
	if err := c.store.Commit(ctx, c.ops.col.Create(op)); err != nil {
		return nil, err
	}
	c.kick(in.ID)
	return c.ops.show(op), nil
}

// opPatch labels an operation with the change that it is to make.
const opPatch = "patch"

// patched is what in becomes by a patch, checked.
func (c *Controller) patched(in *api.Instance, patch []byte) (*api.Instance, error) {
	var changes struct {
		Labels json.RawMessage `json:"labels"`
		Spec   json.RawMessage `json:"spec"`
	}
	if err := strict(patch, &changes); err != nil {
		return nil, err
	}
	n := c.instances.Clone(in)
	if err := merge(&n.Labels, changes.Labels); err != nil {
		return nil, err
	}
	if err := merge(&n.Spec, changes.Spec); err != nil {
		return nil, err
	}
	old, now := in.Spec, n.Spec
	switch {
	case n.Spec.Power != in.Spec.Power:
		return nil, api.Errorf(api.CodeInvalid, "power is not changed by a patch").WithField("spec.power").WithHint("use start, stop, pause or resume")
	case old.Image != now.Image:
		return nil, fixed("spec.image", in.Name)
	case cmp.Or(old.Root.Pool, defaultPool) != cmp.Or(now.Root.Pool, defaultPool):
		return nil, fixed("spec.root.pool", in.Name)
	case ownSystem(in) != ownSystem(n):
		return nil, fixed("spec.machine.firmware", in.Name)
	case archOf(n) != archOf(in): // what it has written is of the other
		return nil, fixed("spec.machine.arch", in.Name)
	case isMachine(in) && isMachine(n) && rootSize(n, nil) < rootSize(in, nil):
		return nil, shrunk("spec.root.size", in.Name)
	}
	if in.Status.Saved && (changesMachine(old, now) || kindOf(in) != kindOf(n)) {
		return nil, api.Errorf(api.CodeConflict, "the memory of %q is saved, and knows the machine as it was", in.Name).
			WithHint("start it first; `cleave start --fresh %s` drops the memory", in.Name)
	}
	if err := c.validate(n); err != nil {
		return nil, err
	}
	if !sameNICs(old, now) {
		for _, nic := range nicsOf(now) {
			if _, err := c.networkOf(in.Project, nic.Network); err != nil {
				return nil, api.AsError(err).WithField("spec.nics")
			}
		}
	}
	if old.Root.Size != now.Root.Size || kindOf(in) != kindOf(n) {
		if err := c.rootFits(c.ctx, n); err != nil {
			return nil, err
		}
	}
	if old.Machine.ISO != now.Machine.ISO {
		if _, err := c.fitsDrive(c.ctx, n); err != nil {
			return nil, err
		}
	}
	if kindOf(in) != kindOf(n) && in.Status.Phase != api.PhaseStopped && in.Status.Phase != api.PhaseFailed {
		return nil, api.Errorf(api.CodeConflict, "instance %q is %s: its wall can't be changed", in.Name, in.Status.Phase).WithField("spec.kind").
			WithHint("`cleave stop %s` first", in.Name)
	}
	return n, nil
}

func nicsOf(s api.InstanceSpec) []api.NIC {
	if s.NICs == nil {
		return []api.NIC{{}}
	}
	return s.NICs
}

func fixed(field, name string) error {
	return api.Errorf(api.CodeUnsupported, "%s of %q was chosen when it was made, and can't be changed", field, name).WithField(field).
		WithHint("make a new one in place of %s", name)
}
