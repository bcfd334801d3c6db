package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/internal/sparse"
)

// rootSize is how much the guest may write to its root; of a machine, the
// size of its disk. img may be nil when it isn't known.
func rootSize(in *api.Instance, img *api.Image) api.Bytes {
	if in.Spec.Root.Size > 0 {
		return in.Spec.Root.Size
	}
	if img != nil {
		return max(defaultRootSize, img.DiskSize)
	}
	return defaultRootSize
}

// rootQuota is the size of the volume that holds the root. A disk in a file
// needs some more than its size: what the file system says about the file, or
// where the volume itself is a file system, the tables and journal of that.
func rootQuota(in *api.Instance, img *api.Image) api.Bytes {
	size := rootSize(in, img)
	if isMachine(in) {
		size = diskQuota(size)
	}
	return size
}

func diskQuota(size api.Bytes) api.Bytes { return size + size/32 + 128*api.MiB }

// imageOf is the instance's image; nil if it has none.
func (c *Controller) imageOf(ctx context.Context, in *api.Instance) (*api.Image, error) {
	if in.Spec.Image == "" {
		return nil, nil
	}
	return c.images.Get(ctx, cmp.Or(in.Status.Digest, in.Spec.Image))
}

// makeRootDisk makes the disk of a system of its own, in its root volume: a
// copy of the image's, or an empty one. Those of images are made by the
// engine. What was made completely before is left as it is.
func (t *task) makeRootDisk(ctx context.Context, dir string, img *api.Image) (err error) {
	path := filepath.Join(dir, engine.RootDisk)
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("root disk: %w", err)
	}
	defer func() {
		f.Close()
		if err != nil {
			_ = os.Remove(path + ".new")
		}
	}()
	if img != nil {
		src, err := os.Open(t.c.images.Disk(img.Digest))
		if err != nil {
			return fmt.Errorf("disk of image %s: %w", t.in.Spec.Image, err)
		}
		defer src.Close()
		err = sparse.Copy(ctx, f, src, func(done, total int64) { t.progress("copying the disk", done, total) })
		if err != nil {
			return fmt.Errorf("copying the disk of image %s: %w", t.in.Spec.Image, err)
		}
	}
	if err := f.Truncate(int64(rootSize(t.in, img))); err != nil {
		return fmt.Errorf("root disk: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("root disk: %w", err)
	}
	return os.Rename(path+".new", path)
}

// noCopyOnWrite has the files made in a directory written in place, where
// the file system copies on write (btrfs, ioctl_iflags(2)): the blocks of a
// disk that were overwritten in part would else stay, and go beyond the
// volume's size.
func noCopyOnWrite(dir string) {
	f, err := os.Open(dir)
	if err != nil {
		return
	}
	defer f.Close()
	const nocow = 0x00800000 // FS_NOCOW_FL of linux/fs.h
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err == nil { // others have no such flag, and no need of it
		_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags|nocow)
	}
}
