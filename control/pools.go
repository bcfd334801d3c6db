package control

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/storage"
	"github.com/cleave-project/cleave/store"
)

// poolProject is where pools are recorded: they belong to the host, not to a
// project.
const poolProject = "host"

// poolMark is the file by which a pool's source is known as that pool's. It
// tells an empty pool from the mount point of a disk that is not mounted.
const poolMark = "cleave-pool"

func (c *Controller) poolSource(p *api.Pool) string {
	return cmp.Or(p.Spec.Source, filepath.Join(c.Data, "pools", p.Name))
}

// openPool opens the driver of a pool, or says why it can't be. Only a fresh
// pool may find its source empty.
func (c *Controller) openPool(ctx context.Context, p *api.Pool, fresh bool) error {
	driver, ok := c.Drivers[p.Spec.Driver]
	if !ok {
		return api.Errorf(api.CodeInvalid, "%q is not a storage driver", p.Spec.Driver).WithField("spec.driver").
			WithHint("use one of %s", fmtList(slices.Sorted(maps.Keys(c.Drivers))))
	}
	d, err := storage.Driver(nil), c.checkMark(p, fresh)
	if err == nil {
		d, err = driver.Open(ctx, storage.Config{
			Name: p.Name, Source: c.poolSource(p), Run: filepath.Join(c.Run, "pools"), Size: p.Spec.Size,
		})
	}
	if err == nil && fresh {
		err = setMark(c.poolSource(p), p.ID)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.poolErr[p.Name] = err
		return err
	}
	c.drivers[p.Name] = d
	delete(c.poolErr, p.Name)
	return nil
}

// checkMark refuses a source that is not this pool's.
func (c *Controller) checkMark(p *api.Pool, fresh bool) error {
	if p.Spec.Source == "" {
		return nil // it lies beside the records themselves
	}
	source := c.poolSource(p)
	b, err := os.ReadFile(filepath.Join(source, poolMark))
	owner := strings.TrimSpace(string(b))
	switch {
	case fresh && (err != nil || owner == p.ID):
		return nil
	case fresh:
		return api.Errorf(api.CodeInUse, "%s holds another pool (id %s)", source, owner).WithField("spec.source").
			WithHint("choose another directory; if that pool is needed no more, remove %s there", poolMark)
	case err != nil:
		return api.Errorf(api.CodeUnavailable, "pool %q is not in %s: %w", p.Name, source, err).
			WithHint("mount its disk and start cleaved again")
	case owner != p.ID:
		return api.Errorf(api.CodeConflict, "%s holds another pool (id %s) than %q (id %s)", source, owner, p.Name, p.ID).
			WithHint("mount the right disk and start cleaved again")
	}
	return nil
}

func setMark(source, id string) error {
	if err := os.MkdirAll(source, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(source, poolMark), []byte(id+"\n"), 0o600)
}

// driver finds the driver of a pool.
func (c *Controller) driver(pool string) (storage.Driver, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if d := c.drivers[pool]; d != nil {
		return d, nil
	}
	if err := c.poolErr[pool]; err != nil {
		return nil, fmt.Errorf("pool %q is not ready: %w", pool, err)
	}
	return nil, api.Errorf(api.CodeNotFound, "pool %q not found", pool).WithHint("`cleave pool list` shows what there is")
}

// CreatePool records a pool and opens it.
func (c *Controller) CreatePool(ctx context.Context, in *api.Pool) (*api.Pool, error) {
	p := &api.Pool{Meta: newMeta(poolProject, &in.Meta), Spec: in.Spec}
	if err := checkMeta("pool", &p.Meta); err != nil {
		return nil, err
	}
	if p.Spec.Source != "" && !filepath.IsAbs(p.Spec.Source) {
		return nil, api.Errorf(api.CodeInvalid, "pool source %q is not an absolute path", p.Spec.Source).WithField("spec.source")
	}
	if _, err := c.pools.Get(poolProject, p.Name); err == nil {
		return nil, api.Errorf(api.CodeExists, "pool %q already exists", p.Name).WithField("name")
	}
	if err := c.openPool(ctx, p, true); err != nil {
		c.mu.Lock()
		delete(c.poolErr, p.Name)
		c.mu.Unlock()
		return nil, err
	}
	if err := c.store.Commit(ctx, c.pools.Create(p)); err != nil {
		c.closePool(context.WithoutCancel(ctx), p.Name)
		return nil, err
	}
	c.emit("pool.created", &p.Meta, "", nil)
	return c.Pool(ctx, p.Name)
}

// closePool takes an empty pool apart.
func (c *Controller) closePool(ctx context.Context, name string) {
	c.mu.Lock()
	d := c.drivers[name]
	delete(c.drivers, name)
	c.mu.Unlock()
	if d != nil {
		if err := d.Destroy(ctx); err != nil {
			c.log.Error("a pool could not be taken apart", "pool", name, "error", err)
		}
	}
}

// Pool finds a pool by name, with what its driver says.
func (c *Controller) Pool(ctx context.Context, name string) (*api.Pool, error) {
	p, err := c.pools.Get(poolProject, name)
	if err != nil {
		return nil, err
	}
	n := *p
	d, err := c.driver(name)
	if err == nil {
		n.Status, err = d.Status(ctx)
	}
	if err != nil {
		n.Status.State = err.Error()
	}
	return &n, nil
}

// Pools lists the pools of the host.
func (c *Controller) Pools(ctx context.Context) ([]api.Pool, error) {
	list := []api.Pool{}
	for _, p := range c.pools.All() {
		n, err := c.Pool(ctx, p.Name)
		if err != nil {
			return nil, err
		}
		list = append(list, *n)
	}
	return list, nil
}

// DeletePool takes an empty pool apart.
func (c *Controller) DeletePool(ctx context.Context, name string) error {
	p, err := c.pools.Get(poolProject, name)
	if err != nil {
		return err
	}
	var users []string
	for _, in := range c.instances.All() {
		if cmp.Or(in.Spec.Root.Pool, defaultPool) == name {
			users = append(users, "instance "+in.Name)
		}
	}
	for _, v := range c.volumes.All() {
		if cmp.Or(v.Spec.Pool, defaultPool) == name {
			users = append(users, "volume "+v.Name)
		}
	}
	if len(users) > 0 {
		return api.Errorf(api.CodeInUse, "pool %q holds %s", name, fmtList(users)).WithHint("delete them first")
	}
	if d, err := c.driver(name); err == nil {
		if err := d.Destroy(ctx); err != nil {
			return err
		}
	}
	c.mu.Lock()
	delete(c.drivers, name)
	delete(c.poolErr, name)
	c.mu.Unlock()
	os.Remove(filepath.Join(c.poolSource(p), poolMark))
	if err := c.commit(c.pools.Delete(p)); err != nil {
		return err
	}
	c.emit("pool.deleted", &p.Meta, "", nil)
	return nil
}

// newMeta is the meta of a resource that a user creates.
func newMeta(project string, in *api.Meta) api.Meta {
	return api.Meta{ID: store.NewID(), Project: project, Name: in.Name, Labels: in.Labels, Created: store.Now()}
}

func checkMeta(what string, m *api.Meta) error {
	if err := api.ValidateName(what, m.Name); err != nil {
		return err
	}
	return api.ValidateLabels(m.Labels)
}
