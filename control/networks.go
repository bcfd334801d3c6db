package control

import (
	"cmp"
	"context"
	"strings"

	"github.com/cleave-project/cleave/api"
)

// networkOf finds the network that a NIC names: the project's own, else the
// shared one of the default project.
func (c *Controller) networkOf(project, name string) (*api.Network, error) {
	name = cmp.Or(name, defaultNetwork)
	n, err := c.networks.Get(project, name)
	if err != nil && project != api.DefaultProject {
		n, err = c.networks.Get(api.DefaultProject, name)
	}
	if err != nil {
		return nil, err
	}
	if !strings.HasPrefix(n.Status.State, "ready") {
		return nil, api.Errorf(api.CodeUnavailable, "network %q is not ready: %s", name, n.Status.State).
			WithHint("`cleave doctor` says what the host lacks; `--network none` starts without")
	}
	return n, nil
}

// CreateNetwork makes a network.
func (c *Controller) CreateNetwork(ctx context.Context, in *api.Network) (*api.Network, error) {
	project, err := projectOf(in.Project)
	if err != nil {
		return nil, err
	}
	n := &api.Network{Meta: newMeta(project, &in.Meta), Spec: in.Spec}
	if err := checkMeta("network", &n.Meta); err != nil {
		return nil, err
	}
	if n.Name == "none" {
		return nil, api.Errorf(api.CodeInvalid, "a network can't be named none").WithField("name").WithHint("that word stands for no network")
	}
	if _, err := c.networks.Get(project, n.Name); err == nil {
		return nil, api.Errorf(api.CodeExists, "network %q already exists", n.Name).WithField("name")
	}
	if n.Status, err = c.net.Ensure(ctx, n); err != nil {
		return nil, c.naming(err)
	}
	if err := c.store.Commit(ctx, c.networks.Create(n)); err != nil {
		if rerr := c.net.Remove(context.WithoutCancel(ctx), n.ID); rerr != nil {
			c.log.Error("a network could not be undone", "network", n.Name, "error", rerr)
		}
		return nil, err
	}
	c.emit("network.created", &n.Meta, "", nil)
	return c.Network(ctx, project, n.Name)
}

// Network finds a network by name.
func (c *Controller) Network(_ context.Context, project, name string) (*api.Network, error) {
	project, err := projectOf(project)
	if err != nil {
		return nil, err
	}
	n, err := c.networks.Get(project, name)
	if err != nil {
		return nil, err
	}
	v := *n
	v.Status.UsedBy = c.networkUsers(n)
	return &v, nil
}

func (c *Controller) networkUsers(n *api.Network) []string {
	var users []string
	for _, in := range c.instances.All() {
		names := []string{}
		for _, p := range in.Status.NICs {
			names = append(names, p.Network)
		}
		for _, n := range nicsOf(in.Spec) { // one may wait for the next start
			names = append(names, n.Network)
		}
		for _, name := range names {
			if on, err := c.networkOf(in.Project, name); err == nil && on.ID == n.ID {
				users = append(users, in.Name)
				break
			}
		}
	}
	return users
}

// Networks lists a project's networks.
func (c *Controller) Networks(ctx context.Context, project string) ([]api.Network, error) {
	project, err := projectOf(project)
	if err != nil {
		return nil, err
	}
	list := []api.Network{}
	for _, n := range c.networks.All() {
		if n.Project != project {
			continue
		}
		if v, err := c.Network(ctx, project, n.Name); err == nil {
			list = append(list, *v)
		}
	}
	return list, nil
}

// PatchNetwork changes a network's labels and policy by a JSON merge patch.
// Subnets can't change: guests hold addresses in them.
func (c *Controller) PatchNetwork(ctx context.Context, project, name string, revision int64, patch []byte) (*api.Network, error) {
	n, err := c.Network(ctx, project, name)
	if err != nil {
		return nil, err
	}
	_, err = c.networks.Update(ctx, n.ID, func(n *api.Network) error {
		if err := checkRevision(&n.Meta, revision); err != nil {
			return err
		}
		old := n.Spec
		if err := mergeResource(&n.Labels, &n.Spec, patch); err != nil {
			return err
		}
		if n.Spec.IPv4 != old.IPv4 || n.Spec.IPv6 != old.IPv6 {
			return fixed("spec.ipv4 and spec.ipv6", name)
		}
		var err error
		n.Status, err = c.net.Ensure(ctx, n)
		return c.naming(err)
	})
	if err != nil {
		return nil, err
	}
	return c.Network(ctx, project, name)
}

// DeleteNetwork removes a network that no instance has a port on.
func (c *Controller) DeleteNetwork(ctx context.Context, project, name string) error {
	n, err := c.Network(ctx, project, name)
	if err != nil {
		return err
	}
	if len(n.Status.UsedBy) > 0 {
		return api.Errorf(api.CodeInUse, "network %q is used by %s", name, fmtList(n.Status.UsedBy)).WithHint("`cleave network detach %s NAME` takes an instance off it, or delete those instances first", name)
	}
	if err := c.store.Commit(ctx, c.networks.Delete(c.networks.ByID(n.ID))); err != nil {
		return err
	}
	c.emit("network.deleted", &n.Meta, "", nil)
	return c.naming(c.net.Remove(context.WithoutCancel(ctx), n.ID))
}
