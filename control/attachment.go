package control

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/cleave-project/cleave/api"
)

// Labels of operations that change one device. What the change of the spec is
// follows when it is their turn: two of them at a time are both made.
const (
	opAttach = "attach"
	opDetach = "detach"
)

// AttachDevice adds a mount or a port to an instance. A running guest gets it
// before the operation ends, if its engine can do that; else it has it from
// the next start on, which the operation's last step says.
func (c *Controller) AttachDevice(ctx context.Context, project, name string, a api.Attachment) (*api.Operation, error) {
	if (a.Mount == nil) == (a.NIC == nil) {
		return nil, api.Errorf(api.CodeInvalid, "an attachment is either a mount or a nic")
	}
	return c.changeDevices(ctx, project, name, opAttach, a)
}

// DetachDevice takes a mount or a port from an instance, like AttachDevice.
func (c *Controller) DetachDevice(ctx context.Context, project, name string, d api.Detachment) (*api.Operation, error) {
	mount, port := d.Volume != "" || d.HostPath != "" || d.Target != "", d.Network != "" || d.NIC != ""
	if mount == port {
		return nil, api.Errorf(api.CodeInvalid, "a detachment names either a mount or a port").WithHint("give volume, hostPath or target, or network or nic")
	}
	return c.changeDevices(ctx, project, name, opDetach, d)
}

func (c *Controller) changeDevices(ctx context.Context, project, name, label string, device any) (*api.Operation, error) {
	if op := c.ops.repeated(ctx, "instance.update"); op != nil {
		return op, nil
	}
	in, err := c.Instance(project, name)
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(device)
	if err != nil {
		return nil, err
	}
	op := newOperation(ctx, in.Project, "instance.update", name, in.ID)
	op.Labels[label] = string(text)
	if _, err := c.changed(in, op); err != nil {
		return nil, err
	}
	if err := c.store.Commit(ctx, c.ops.col.Create(op)); err != nil {
		return nil, err
	}
	c.kick(in.ID)
	return c.ops.show(op), nil
}

// changed is what in becomes by an operation, checked.
func (c *Controller) changed(in *api.Instance, op *api.Operation) (*api.Instance, error) {
	patch := []byte(op.Labels[opPatch])
	var err error
	if text := op.Labels[opAttach]; text != "" {
		var a api.Attachment
		if err = json.Unmarshal([]byte(text), &a); err == nil {
			patch, err = attachPatch(in, a)
		}
	}
	if text := op.Labels[opDetach]; text != "" {
		var d api.Detachment
		if err = json.Unmarshal([]byte(text), &d); err == nil {
			patch, err = detachPatch(in, d)
		}
	}
	if err != nil {
		return nil, err
	}
	return c.patched(in, patch)
}

func specPatch(key string, value any) ([]byte, error) {
	return json.Marshal(map[string]any{"spec": map[string]any{key: value}})
}

func attachPatch(in *api.Instance, a api.Attachment) ([]byte, error) {
	if m := a.Mount; m != nil {
		i := slices.IndexFunc(in.Spec.Mounts, func(o api.Mount) bool { return o.Target == m.Target })
		if i >= 0 {
			return nil, api.Errorf(api.CodeExists, "instance %q has %s at %s already", in.Name, source(in.Spec.Mounts[i]), m.Target).WithField("mount.target")
		}
		return specPatch("mounts", append(slices.Clone(in.Spec.Mounts), *m))
	}
	n := *a.NIC
	if n.Name != "" && index(in.Status.NICs, n.Name) >= 0 {
		return nil, api.Errorf(api.CodeExists, "instance %q has a port %s already", in.Name, n.Name).WithField("nic.name")
	}
	// It keeps its name whatever becomes of those before it.
	nics := nicsOf(in.Spec)
	for i := 0; n.Name == ""; i++ {
		name := fmt.Sprintf("eth%d", i)
		if index(in.Status.NICs, name) < 0 && !slices.ContainsFunc(nics, func(o api.NIC) bool { return o.Name == name }) {
			n.Name = name
		}
	}
	return specPatch("nics", append(slices.Clone(nics), n))
}

// source is what a mount brings.
func source(m api.Mount) string {
	if m.Volume != "" {
		return fmt.Sprintf("volume %q", m.Volume)
	}
	return m.HostPath
}

func detachPatch(in *api.Instance, d api.Detachment) ([]byte, error) {
	if d.Network != "" || d.NIC != "" {
		return detachNIC(in, d)
	}
	var found []int
	for i, m := range in.Spec.Mounts {
		if (d.Volume == "" || d.Volume == m.Volume) && (d.HostPath == "" || d.HostPath == m.HostPath) && (d.Target == "" || d.Target == m.Target) {
			found = append(found, i)
		}
	}
	what := strings.Join(slices.DeleteFunc([]string{cmp.Or(d.Volume, d.HostPath), d.Target}, func(s string) bool { return s == "" }), " at ")
	switch {
	case len(found) == 0:
		return nil, api.Errorf(api.CodeNotFound, "instance %q has no volume %s", in.Name, what).WithHint("%s", hasMounts(in))
	case len(found) > 1:
		return nil, api.Errorf(api.CodeConflict, "instance %q has %s more than once", in.Name, what).WithHint("name the target too; %s", hasMounts(in))
	}
	return specPatch("mounts", slices.Delete(slices.Clone(in.Spec.Mounts), found[0], found[0]+1))
}

func hasMounts(in *api.Instance) string {
	var l []string
	for _, m := range in.Spec.Mounts {
		l = append(l, cmp.Or(m.Volume, m.HostPath)+" at "+m.Target)
	}
	if len(l) == 0 {
		return "it has none"
	}
	return "it has " + fmtList(l)
}

func detachNIC(in *api.Instance, d api.Detachment) ([]byte, error) {
	nics := slices.Clone(nicsOf(in.Spec))
	of := matched(nics, in.Status.NICs)
	name := func(i int) string {
		if of[i] >= 0 {
			return in.Status.NICs[of[i]].Name
		}
		return nicName(nics[i], i)
	}
	var found []int
	var has []string
	for i, n := range nics {
		on := cmp.Or(n.Network, defaultNetwork)
		has = append(has, name(i)+" on "+on)
		if (d.Network == "" || d.Network == on) && (d.NIC == "" || d.NIC == name(i)) {
			found = append(found, i)
		}
	}
	what := strings.Join(slices.DeleteFunc([]string{d.NIC, d.Network}, func(s string) bool { return s == "" }), " on ")
	hint := "it has " + fmtList(has)
	switch {
	case len(has) == 0:
		hint = "it has none"
		fallthrough
	case len(found) == 0:
		return nil, api.Errorf(api.CodeNotFound, "instance %q has no port %s", in.Name, what).WithHint("%s", hint)
	case len(found) > 1:
		return nil, api.Errorf(api.CodeConflict, "instance %q has more than one port %s", in.Name, what).WithHint("name the interface; %s", hint)
	}
	// Those behind it keep the names that they have.
	left := []api.NIC{}
	for i, n := range nics {
		if i == found[0] {
			continue
		}
		if nicName(n, len(left)) != name(i) {
			n.Name = name(i)
		}
		left = append(left, n)
	}
	return specPatch("nics", left)
}
