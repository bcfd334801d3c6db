package control

import (
	"cmp"
	"context"

	"github.com/cleave-project/cleave/api"
)

// Bounds of what a disk or volume may promise. All but those of pools on a
// plain directory are thin: they take what was written, and a pool may have
// promised more than it has. What no pool could keep is a slip of the pen.
const (
	// largestDisk is the largest file that ext4 holds, with its usual blocks of
	// 4 KiB (Documentation/filesystems/ext4/overview.rst): a machine's disk is
	// one file, on whatever its pool lies.
	largestDisk = 16*api.TiB - 4*api.KiB
	// A pool may promise one guest this many times what it holds in all, but
	// on a small host as much as other systems' disks usually have.
	promised       = 10
	promisedAlways = api.TiB
)

// fitsPool refuses a size that the pool could never hold. One without a
// limit is as large as its pool.
func (c *Controller) fitsPool(ctx context.Context, field, pool string, size api.Bytes, disk bool) error {
	if disk && size > largestDisk {
		return api.Errorf(api.CodeInvalid, "a disk of %s: it is one file, and can have 16TiB less 4KiB at most", size).WithField(field).
			WithHint("give a smaller size, and the machine more disks (`cleave volume create --type disk`)")
	}
	if size <= promisedAlways {
		return nil
	}
	pool = cmp.Or(pool, defaultPool)
	d, err := c.driver(pool)
	if err != nil {
		return err
	}
	st, err := d.Status(ctx)
	if err != nil {
		return err
	}
	most := max(promisedAlways, promised*st.Total/api.TiB*api.TiB)
	if size <= most {
		return nil
	}
	return api.Errorf(api.CodeNoSpace, "a size of %s: pool %q has %s, and may promise a guest %d times that, or %s", size, pool, st.Total, promised, promisedAlways).
		WithField(field).WithHint("give at most %s, or choose a larger pool (`cleave pool list`)", most)
}

// rootFits is fitsPool for an instance's root.
func (c *Controller) rootFits(ctx context.Context, in *api.Instance) error {
	return c.fitsPool(ctx, "spec.root.size", in.Spec.Root.Pool, in.Spec.Root.Size, isMachine(in))
}

// volumeFits is fitsPool for a volume.
func (c *Controller) volumeFits(ctx context.Context, v *api.Volume) error {
	return c.fitsPool(ctx, "spec.size", v.Spec.Pool, v.Spec.Size, v.Spec.Type == api.VolumeDisk)
}
