package dir

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/storage/internal/hostdisk"
)

const (
	treeName  = "tree"
	diskName  = "disk.ext4"
	newPrefix = ".new-" // no id begins with a dot
)

// part is what a volume consists of.
type part struct {
	file    *os.File // the root directory, or disk.ext4
	disk    bool
	project uint32 // of the root directory, or 0
}

// find opens what the volume consists of; the caller closes it.
func (p *pool) find(id string) (*part, error) {
	dir := filepath.Join(p.volumes, id)
	file, err := os.OpenFile(filepath.Join(dir, diskName), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err == nil {
		return &part{file: file, disk: true}, nil
	}
	if errors.Is(err, os.ErrNotExist) {
		file, err = os.OpenFile(filepath.Join(dir, treeName), os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil, api.Errorf(api.CodeNotFound, "pool %q has no volume %q: %w", p.config.Name, id, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open volume %q: %w", id, err)
	}
	return &part{file: file, project: projectOf(file)}, nil
}

// size is the volume's limit.
func (p *pool) size(v *part) (api.Bytes, error) {
	switch {
	case v.disk:
		st, err := v.file.Stat()
		if err != nil {
			return 0, err
		}
		return api.Bytes(st.Size()), nil
	case v.project != 0 && p.projects != nil:
		_, size, err := p.projects.usage(v.project)
		return size, err
	}
	return 0, nil
}

// failed turns an error of the kernel into one that tells a full disk.
func (p *pool) failed(what, id string, err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return api.Errorf(api.CodeNoSpace, "%s volume %q: the disk of pool %q is full: %w", what, id, p.config.Name, err).
			WithHint("delete volumes, or free some space in %s", p.config.Source)
	}
	if errors.Is(err, unix.EFBIG) {
		return api.Errorf(api.CodeInvalid, "%s volume %q: the disk of pool %q has no files as large: %w", what, id, p.config.Name, err).
			WithHint("give a smaller size, or use a pool of driver btrfs")
	}
	return fmt.Errorf("%s volume %q in pool %q: %w", what, id, p.config.Name, err)
}

// Create implements storage.Driver.
func (p *pool) Create(ctx context.Context, id string, size api.Bytes) error {
	disk := size > 0 && p.projects == nil
	if size < 0 || disk && size < minDisk {
		return api.Errorf(api.CodeInvalid, "volume %q of %v: the least size is %v", id, size, minDisk).WithField("spec.size")
	}
	// Both kinds of limit have a unit, and the limit is compared with size.
	size = (size + limitUnit - 1) / limitUnit * limitUnit
	end, err := p.gate.EnterVolume(ctx, id)
	if err != nil {
		return err
	}
	defer end()
	v, err := p.find(id)
	if err == nil {
		defer v.file.Close()
		has, err := p.size(v)
		if err == nil && has != size {
			err = api.Errorf(api.CodeExists, "create volume %q of %v: there is one of %v", id, size, has)
		}
		return err
	}
	if !api.IsCode(err, api.CodeNotFound) {
		return err
	}
	// Not the same name for each attempt: when the daemon dies, its mkfs may
	// go on for a while.
	dir, err := os.MkdirTemp(p.volumes, newPrefix)
	if err != nil {
		return p.failed("create", id, err)
	}
	if disk {
		err = p.makeDisk(ctx, dir, size)
	} else {
		err = p.makeTree(dir, size)
	}
	if err == nil {
		err = hostdisk.Rename(dir, filepath.Join(p.volumes, id))
	}
	if err != nil {
		return errors.Join(p.failed("create", id, err), p.discard(context.WithoutCancel(ctx), filepath.Base(dir)))
	}
	return nil
}

// limitUnit is the file systems' block size.
const limitUnit = 4096

func (p *pool) makeTree(dir string, size api.Bytes) error {
	tree, err := makeRoot(filepath.Join(dir, treeName))
	if err != nil {
		return err
	}
	defer tree.Close()
	if p.projects != nil {
		if err := p.projects.assign(tree, size); err != nil {
			return err
		}
	}
	return errors.Join(tree.Sync(), hostdisk.SyncDir(dir))
}

// makeRoot makes the root directory of a volume.
func makeRoot(path string) (*os.File, error) {
	if err := os.Mkdir(path, 0o755); err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	// Not what umask, set-gid parents and file system ids make of it.
	if err := errors.Join(f.Chown(0, 0), f.Chmod(0o755)); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Delete implements storage.Driver.
func (p *pool) Delete(ctx context.Context, id string) error {
	end, err := p.gate.EnterVolume(ctx, id)
	if err != nil {
		return err
	}
	defer end()
	v, err := p.find(id)
	if api.IsCode(err, api.CodeNotFound) {
		return p.discard(ctx, id) // whatever is there is no volume
	}
	if err != nil {
		return err
	}
	defer v.file.Close()
	if err := p.unmount(id); err != nil {
		return p.busy("delete", id, err)
	}
	if err := p.discard(ctx, id); err != nil {
		return p.failed("delete", id, err)
	}
	if v.project != 0 && p.projects != nil {
		return p.projects.limit(v.project, 0)
	}
	return nil
}

func (p *pool) busy(what, id string, err error) error {
	if errors.Is(err, unix.EBUSY) {
		return api.Errorf(api.CodeInUse, "%s volume %q: a process works in %s: %w", what, id, p.point(id), err).
			WithHint("end that first")
	}
	return fmt.Errorf("%s volume %q: %w", what, id, err)
}

// Resize implements storage.Driver.
func (p *pool) Resize(ctx context.Context, id string, size api.Bytes) error {
	size = (size + limitUnit - 1) / limitUnit * limitUnit
	end, err := p.gate.EnterVolume(ctx, id)
	if err != nil {
		return err
	}
	defer end()
	v, err := p.find(id)
	if err != nil {
		return err
	}
	defer v.file.Close()
	has, err := p.size(v)
	switch {
	case err != nil:
		return err
	case size < 0:
		return api.Errorf(api.CodeInvalid, "resize volume %q to %v", id, size).WithField("spec.size")
	case v.disk:
		return p.resizeDisk(ctx, id, v, has, size)
	case v.project != 0 && p.projects != nil:
		return p.resizeProject(id, v, size)
	case size == 0:
		return nil // it has no limit
	}
	return api.Errorf(api.CodeUnsupported, "resize volume %q to %v: it was made without a limit, and the file system of %s has no project quotas", id, size, p.config.Source).
		WithHint("mount it with project quotas, or make a new volume")
}

func (p *pool) resizeProject(id string, v *part, size api.Bytes) error {
	used, _, err := p.projects.usage(v.project)
	if err != nil {
		return err
	}
	if size > 0 && used > size {
		return api.Errorf(api.CodeConflict, "resize volume %q to %v: %v of it are in use", id, size, used).
			WithHint("delete files in it, or choose a larger size")
	}
	return p.projects.limit(v.project, size)
}

// Usage implements storage.Driver. A volume without limit, on a file system
// without project quotas, is measured file by file.
func (p *pool) Usage(ctx context.Context, id string) (used, size api.Bytes, err error) {
	end, err := p.gate.EnterVolume(ctx, id)
	if err != nil {
		return 0, 0, err
	}
	defer end()
	v, err := p.find(id)
	if err != nil {
		return 0, 0, err
	}
	defer v.file.Close()
	switch {
	case v.disk:
		return p.diskUsage(id, v)
	case v.project != 0 && p.projects != nil:
		return p.projects.usage(v.project)
	}
	used, err = diskUse(ctx, v.file, 0, make(map[inode]bool))
	return used, 0, err
}

// Path implements storage.Driver.
func (p *pool) Path(ctx context.Context, id string) (string, error) {
	end, err := p.gate.EnterVolume(ctx, id)
	if err != nil {
		return "", err
	}
	defer end()
	v, err := p.find(id)
	if err != nil {
		return "", err
	}
	defer v.file.Close()
	if !v.disk {
		return v.file.Name(), nil
	}
	return p.mount(ctx, id, v)
}

// Release implements storage.Driver.
func (p *pool) Release(ctx context.Context, id string) error {
	end, err := p.gate.EnterVolume(ctx, id)
	if err != nil {
		return err
	}
	defer end()
	if err := p.unmount(id); err != nil {
		return p.busy("release", id, err)
	}
	return nil
}
