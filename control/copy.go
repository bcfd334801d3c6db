package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/store"
)

// CopyInstance has a stopped instance copied, behind another wall if kind
// says one: with all files of its root and its settings, but with addresses
// of its own. Named volumes are not copied: both mount them.
func (c *Controller) CopyInstance(ctx context.Context, project, name, to string, kind api.Kind) (*api.Operation, error) {
	if op := c.ops.repeated(ctx, "instance.copy"); op != nil {
		return op, nil
	}
	if err := api.ValidateName("instance", to); err != nil {
		return nil, err
	}
	in, err := c.Instance(project, name)
	if err != nil {
		return nil, err
	}
	if _, err := c.instances.Get(in.Project, to); err == nil {
		return nil, api.Errorf(api.CodeExists, "instance %q already exists", to).WithField("name").WithHint("choose another name, or `cleave delete %s` first", to)
	}
	if err := copyable(in); err != nil {
		return nil, err
	}
	op := newOperation(ctx, in.Project, "instance.copy", name, in.ID)
	op.Labels[opTo], op.Labels[opKind], op.Labels[opCopy] = to, string(cmp.Or(kind, kindOf(in))), store.NewID()
	n := c.copyOf(in, op)
	if err := c.validate(n); err != nil {
		return nil, err
	}
	if kindOf(in) != kindOf(n) {
		if err := c.rootFits(ctx, n); err != nil {
			return nil, err
		}
	}
	if err := c.store.Commit(ctx, c.ops.col.Create(op)); err != nil {
		return nil, err
	}
	c.kick(in.ID)
	return c.ops.show(op), nil
}

// copyable refuses what is in use or half made.
func copyable(in *api.Instance) error {
	switch in.Status.Phase {
	case api.PhaseStopped, api.PhaseFailed:
	default:
		return api.Errorf(api.CodeConflict, "instance %q is %s: its files can't be copied", in.Name, in.Status.Phase).WithHint("`cleave stop %s` first", in.Name)
	}
	if in.Status.Saved {
		return api.Errorf(api.CodeConflict, "the memory of %q is saved, and what it has not written yet is in there", in.Name).
			WithHint("start and stop it first")
	}
	return nil
}

// copyOf is the record of what an operation is to make.
func (c *Controller) copyOf(in *api.Instance, op *api.Operation) *api.Instance {
	n := c.instances.Clone(in)
	n.Meta = api.Meta{ID: op.Labels[opCopy], Project: in.Project, Name: op.Labels[opTo], Labels: n.Labels, Created: store.Now()}
	n.Spec.Kind, n.Spec.Power = api.Kind(op.Labels[opKind]), api.PowerStopped
	n.Spec.NICs = slices.Clone(n.Spec.NICs)
	for i := range n.Spec.NICs {
		n.Spec.NICs[i].MAC, n.Spec.NICs[i].IPv4, n.Spec.NICs[i].IPv6 = "", "", ""
	}
	n.Status = api.InstanceStatus{Phase: api.PhaseStopped, Host: c.host, Digest: in.Status.Digest, System: in.Status.System}
	return n
}

// copy makes a copy of the instance.
func (t *task) copy(ctx context.Context, g *guest) (err error) {
	op := t.has("instance.copy")
	rest := len(t.ops)
	t.ops = []*api.Operation{op} // a failure is this one's alone
	c := t.c
	if g == nil {
		err = copyable(t.in)
	} else {
		err = api.Errorf(api.CodeConflict, "instance %q runs: its files can't be copied", t.in.Name).WithHint("`cleave stop %s` first", t.in.Name)
	}
	to := c.copyOf(t.in, op)
	if err == nil {
		err = c.validate(to)
	}
	if err == nil && ownSystem(to) && kindOf(to) != kindOf(t.in) {
		err = fixed("spec.kind", t.in.Name)
	}
	if err != nil {
		return err
	}
	c.alloc.Lock()
	err = c.assign(to)
	c.alloc.Unlock()
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			t.dropRoot(to)
			c.released(to)
			err = errors.Join(err, os.RemoveAll(c.machineDir(to.ID)))
		}
	}()
	t.dropRoot(to) // what an attempt before us left
	if err := t.fillRoot(ctx, t.in, to); err != nil {
		return err
	}
	if err := c.copyFirmware(t.in, to); err != nil {
		return err
	}
	if err := c.commit(c.instances.Create(to), c.ops.col.Put(finished(op, to.Name, nil))); err != nil {
		return err
	}
	c.ops.wake(op)
	c.emit("instance.created", &to.Meta, "copy of "+t.in.Name, map[string]string{"image": to.Status.Digest})
	if rest > 1 {
		c.kick(t.in.ID)
	}
	return nil
}

// copyFirmware copies what a machine's firmware and TPM remember.
func (c *Controller) copyFirmware(from, to *api.Instance) error {
	source := filepath.Join(c.machineDir(from.ID), "firmware")
	if _, err := os.Stat(source); err != nil {
		return nil // it has none, or was never started
	}
	target := filepath.Join(c.machineDir(to.ID), "firmware")
	if err := os.MkdirAll(target, 0o700); err != nil {
		return fmt.Errorf("copying the firmware's state: %w", err)
	}
	if err := os.CopyFS(target, os.DirFS(source)); err != nil {
		return fmt.Errorf("copying the firmware's state: %w", err)
	}
	return nil
}
