package control

import (
	"cmp"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/storage"
)

// CreateVolume makes a named volume.
func (c *Controller) CreateVolume(ctx context.Context, in *api.Volume) (*api.Volume, error) {
	project, err := projectOf(in.Project)
	if err != nil {
		return nil, err
	}
	v := &api.Volume{Meta: newMeta(project, &in.Meta), Spec: in.Spec}
	if err := checkMeta("volume", &v.Meta); err != nil {
		return nil, err
	}
	if v.Spec.Size < 0 || (v.Spec.Size > 0 && v.Spec.Size < 16*api.MiB) {
		return nil, api.Errorf(api.CodeInvalid, "a volume of %s is too small", v.Spec.Size).WithField("spec.size").WithHint("give at least 16MiB, or nothing for no limit")
	}
	if typ := v.Spec.Type; typ != "" && typ != api.VolumeTree && typ != api.VolumeDisk {
		return nil, api.Errorf(api.CodeInvalid, "%q is no type of volume", typ).WithField("spec.type").WithHint("use tree (for containers) or disk (for machines)")
	}
	d, err := c.driver(cmp.Or(v.Spec.Pool, defaultPool))
	if err == nil {
		err = c.volumeFits(ctx, v)
	}
	if err != nil {
		return nil, err
	}
	if _, err := c.volumes.Get(project, v.Name); err == nil {
		return nil, api.Errorf(api.CodeExists, "volume %q already exists", v.Name).WithField("name")
	}
	// The tree first: one without a record is swept at the next start, a
	// record without a tree would be a promise not kept.
	if err := d.Create(ctx, namedVolume(v.ID), volumeQuota(v)); err != nil {
		return nil, called(err, namedVolume(v.ID), v.Name)
	}
	if v.Spec.Type == api.VolumeDisk {
		if dir, err := d.Path(ctx, namedVolume(v.ID)); err == nil {
			noCopyOnWrite(dir)
		}
	}
	if err := c.store.Commit(ctx, c.volumes.Create(v)); err != nil {
		if derr := d.Delete(context.WithoutCancel(ctx), namedVolume(v.ID)); derr != nil {
			c.log.Error("a volume could not be undone", "volume", v.Name, "error", derr)
		}
		return nil, err
	}
	c.emit("volume.created", &v.Meta, "", nil)
	return c.Volume(ctx, project, v.Name)
}

// volumeSize is what a guest finds in a volume; 0 for no limit.
func volumeSize(v *api.Volume) api.Bytes {
	if v.Spec.Type == api.VolumeDisk {
		return cmp.Or(v.Spec.Size, defaultDiskSize)
	}
	return v.Spec.Size
}

// volumeQuota is the size of what holds it.
func volumeQuota(v *api.Volume) api.Bytes {
	if v.Spec.Type == api.VolumeDisk {
		return diskQuota(volumeSize(v))
	}
	return v.Spec.Size
}

// Volume finds a volume by name, with its use.
func (c *Controller) Volume(ctx context.Context, project, name string) (*api.Volume, error) {
	project, err := projectOf(project)
	if err != nil {
		return nil, err
	}
	v, err := c.volumes.Get(project, name)
	if err != nil {
		return nil, err
	}
	n := *v
	n.Status.UsedBy = c.volumeUsers(v)
	if d, err := c.driver(cmp.Or(v.Spec.Pool, defaultPool)); err == nil {
		n.Status.Used, _, _ = d.Usage(ctx, namedVolume(v.ID))
		if v.Spec.Type == api.VolumeDisk && c.volumeLive(v, "") {
			n.Status.Disk = shorter(ctx, d, v)
		}
	}
	return &n, nil
}

// shorter is the size of a volume's disk where that isn't yet what is wanted:
// the next start of its guest makes it longer.
func shorter(ctx context.Context, d storage.Driver, v *api.Volume) api.Bytes {
	dir, err := d.Path(ctx, namedVolume(v.ID))
	if err != nil {
		return 0
	}
	st, err := os.Lstat(filepath.Join(dir, engine.VolumeDisk))
	if err != nil || api.Bytes(st.Size()) >= volumeSize(v) {
		return 0
	}
	return api.Bytes(st.Size())
}

// volumeUsers names the instances that mount a volume.
func (c *Controller) volumeUsers(v *api.Volume) []string {
	var users []string
	for _, in := range c.instances.All() {
		if in.Project == v.Project && slices.ContainsFunc(allMounts(in), func(m api.Mount) bool { return m.Volume == v.Name }) {
			users = append(users, in.Name)
		}
	}
	return users
}

// volumeLive tells whether a guest other than except's runs on a volume.
func (c *Controller) volumeLive(v *api.Volume, except string) bool {
	for _, name := range c.volumeUsers(v) {
		if in, err := c.instances.Get(v.Project, name); err == nil && in.ID != except && c.live(in.ID) != nil {
			return true
		}
	}
	return false
}

// Volumes lists a project's volumes.
func (c *Controller) Volumes(ctx context.Context, project string) ([]api.Volume, error) {
	project, err := projectOf(project)
	if err != nil {
		return nil, err
	}
	list := []api.Volume{}
	for _, v := range c.volumes.All() {
		if v.Project != project {
			continue
		}
		if n, err := c.Volume(ctx, project, v.Name); err == nil {
			list = append(list, *n)
		}
	}
	return list, nil
}

// PatchVolume changes a volume's labels and size by a JSON merge patch.
func (c *Controller) PatchVolume(ctx context.Context, project, name string, revision int64, patch []byte) (*api.Volume, error) {
	v, err := c.Volume(ctx, project, name)
	if err != nil {
		return nil, err
	}
	_, err = c.volumes.Update(ctx, v.ID, func(n *api.Volume) error {
		if err := checkRevision(&n.Meta, revision); err != nil {
			return err
		}
		pool, size, typ := n.Spec.Pool, n.Spec.Size, n.Spec.Type
		if err := mergeResource(&n.Labels, &n.Spec, patch); err != nil {
			return err
		}
		if n.Spec.Pool != pool {
			return fixed("spec.pool", name)
		}
		if cmp.Or(n.Spec.Type, api.VolumeTree) != cmp.Or(typ, api.VolumeTree) {
			return fixed("spec.type", name)
		}
		if n.Spec.Size == size {
			return nil
		}
		if n.Spec.Type == api.VolumeDisk && n.Spec.Size < size {
			return shrunk("spec.size", name)
		}
		for _, user := range c.volumeUsers(n) {
			if in, err := c.instances.Get(n.Project, user); err == nil && n.Spec.Type == api.VolumeDisk && in.Status.Saved {
				return kept(n, in).WithField("spec.size")
			}
		}
		d, err := c.driver(cmp.Or(pool, defaultPool))
		if err == nil {
			err = c.volumeFits(ctx, n)
		}
		if err != nil {
			return err
		}
		return called(d.Resize(ctx, namedVolume(n.ID), volumeQuota(n)), namedVolume(n.ID), name)
	})
	if err != nil {
		return nil, err
	}
	return c.Volume(ctx, project, name)
}

func shrunk(field, name string) error {
	return api.Errorf(api.CodeUnsupported, "the disk of %q can't get smaller: its file system fills it", name).WithField(field).
		WithHint("make a smaller one and copy what is in it")
}

// mergeResource applies a patch of {labels, spec}.
func mergeResource[T any](labels *map[string]string, spec *T, patch []byte) error {
	var doc struct {
		Labels map[string]string `json:"labels"`
		Spec   T                 `json:"spec"`
	}
	doc.Labels, doc.Spec = *labels, *spec
	if err := merge(&doc, patch); err != nil {
		return err
	}
	*labels, *spec = doc.Labels, doc.Spec
	return api.ValidateLabels(doc.Labels)
}

// DeleteVolume removes a volume that no instance mounts.
func (c *Controller) DeleteVolume(ctx context.Context, project, name string) error {
	v, err := c.Volume(ctx, project, name)
	if err != nil {
		return err
	}
	if len(v.Status.UsedBy) > 0 {
		return api.Errorf(api.CodeInUse, "volume %q is mounted by %s", name, fmtList(v.Status.UsedBy)).WithHint("`cleave volume detach %s NAME` takes it from one, or delete those instances", name)
	}
	d, err := c.driver(cmp.Or(v.Spec.Pool, defaultPool))
	if err != nil {
		return err
	}
	if err := c.store.Commit(ctx, c.volumes.Delete(c.volumes.ByID(v.ID))); err != nil {
		return err
	}
	c.emit("volume.deleted", &v.Meta, "", nil)
	return called(d.Delete(context.WithoutCancel(ctx), namedVolume(v.ID)), namedVolume(v.ID), name)
}

// called puts what users call a volume in the place of its id in what a
// driver says.
func called(err error, id, name string) error {
	if err == nil {
		return nil
	}
	e := *api.AsError(err)
	e.Message = strings.ReplaceAll(e.Message, strconv.Quote(id), strconv.Quote(name))
	return &e
}
