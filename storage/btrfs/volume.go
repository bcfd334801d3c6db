package btrfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// minVolume is the least limit that still lets a guest write: an empty
// subvolume's own metadata counts.
const minVolume = api.MiB

// Prefixes of what isn't a volume yet, or no longer. No id begins with a dot.
const (
	newPrefix = ".new-"
	delPrefix = ".del-"
)

func checkSize(id string, size api.Bytes) error {
	if size < 0 || size > 0 && size < minVolume {
		return api.Errorf(api.CodeInvalid, "volume %q of %v: the least size is %v", id, size, minVolume).WithField("spec.size")
	}
	return nil
}

// subvolume opens a volume's root directory and tells its subvolume's id.
func (p *pool) subvolume(name string) (*os.File, uint64, error) {
	fd, err := unix.Openat(int(p.dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil, 0, api.Errorf(api.CodeNotFound, "pool %q has no volume %q: %w", p.config.Name, name, err)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("open volume %q: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), filepath.Join(p.path, name))
	sub, err := subvolumeID(f)
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, sub, nil
}

// failed turns an error of the kernel into one that tells a full pool.
func (p *pool) failed(what, id string, err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return api.Errorf(api.CodeNoSpace, "%s volume %q: pool %q is full: %w", what, id, p.config.Name, err).
			WithHint("delete volumes, or give its disk more room")
	}
	return fmt.Errorf("%s volume %q in pool %q: %w", what, id, p.config.Name, err)
}

// Create implements storage.Driver.
func (p *pool) Create(ctx context.Context, id string, size api.Bytes) error {
	if err := checkSize(id, size); err != nil {
		return err
	}
	end, err := p.gate.EnterVolume(ctx, id)
	if err != nil {
		return err
	}
	defer end()
	dir, sub, err := p.subvolume(id)
	if err == nil {
		defer dir.Close()
		_, has, err := p.quota.usage(sub)
		if err == nil && has != size {
			err = api.Errorf(api.CodeExists, "create volume %q of %v: there is one of %v", id, size, has)
		}
		return err
	}
	if !api.IsCode(err, api.CodeNotFound) {
		return err
	}
	temp := newPrefix + id
	err = p.make(temp, size)
	if err == nil {
		err = unix.Renameat2(int(p.dir.Fd()), temp, int(p.dir.Fd()), id, unix.RENAME_NOREPLACE)
	}
	if err != nil {
		return errors.Join(p.failed("create", id, err), p.destroy(temp))
	}
	if p.grower != nil {
		p.grower.look()
	}
	p.reap()
	p.commit.soon()
	return nil
}

// make makes a complete subvolume under a name that isn't listed.
func (p *pool) make(name string, size api.Bytes) error {
	if err := p.destroy(name); err != nil { // left by a failed attempt
		return err
	}
	if err := createSubvolume(p.dir, name); err != nil {
		return err
	}
	dir, sub, err := p.subvolume(name)
	if err != nil {
		return err
	}
	defer dir.Close()
	// The kernel gave it this process's umask and file system ids.
	if err := errors.Join(dir.Chown(0, 0), dir.Chmod(0o755)); err != nil {
		return err
	}
	return p.quota.attach(p.dir, sub, size)
}

// Delete implements storage.Driver.
func (p *pool) Delete(ctx context.Context, id string) error {
	end, err := p.gate.EnterVolume(ctx, id)
	if err != nil {
		return err
	}
	defer end()
	if err := p.destroy(id); err != nil {
		return p.failed("delete", id, err)
	}
	p.reap()
	p.commit.soon()
	return nil
}

// destroy removes a subvolume by its name in the directory of volumes; one
// that is not there is no error. What it held is freed by the kernel later.
func (p *pool) destroy(name string) error {
	dir, sub, err := p.subvolume(name)
	if api.IsCode(err, api.CodeNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	dir.Close()
	err = destroySubvolume(p.dir, name)
	if errors.Is(err, unix.ENOTEMPTY) {
		err = p.destroyNested(name, sub)
	}
	if err == nil {
		p.bury(sub)
	}
	return err
}

// destroyNested removes a subvolume that has others in it. They are told by
// id, since the paths that lead to them are the guest's.
func (p *pool) destroyNested(name string, sub uint64) error {
	if !strings.HasPrefix(name, delPrefix) {
		hidden := fmt.Sprintf("%s%d", delPrefix, sub)
		if err := unix.Renameat(int(p.dir.Fd()), name, int(p.dir.Fd()), hidden); err != nil {
			return err
		}
		name = hidden
	}
	// Removing one in another changes the outer one, which may be full.
	if err := p.quota.limit(p.dir, sub, 0); err != nil {
		return err
	}
	all := []uint64{sub} // parents before children
	for i := 0; i < len(all); i++ {
		children, err := childSubvolumes(p.dir, all[i])
		if err != nil {
			return err
		}
		all = append(all, children...)
	}
	for _, id := range slices.Backward(all[1:]) {
		if err := destroySubvolumeByID(p.dir, id); err != nil {
			return err
		}
		p.bury(id)
	}
	return destroySubvolume(p.dir, name)
}

// bury notes a destroyed subvolume, whose qgroups can go when the kernel has
// freed what it held.
func (p *pool) bury(sub uint64) {
	p.deadMu.Lock()
	defer p.deadMu.Unlock()
	p.dead = append(p.dead, sub)
}

// reap removes the qgroups of subvolumes that are gone by now. It looks at a
// few, so that no call pays for many; those that are still in use wait for
// another turn.
func (p *pool) reap() {
	p.deadMu.Lock()
	defer p.deadMu.Unlock()
	some := min(len(p.dead), 16)
	rest := slices.Clone(p.dead[some:])
	for _, sub := range p.dead[:some] {
		if !p.quota.remove(p.dir, sub) {
			rest = append(rest, sub)
		}
	}
	p.dead = rest
}

// Resize implements storage.Driver.
func (p *pool) Resize(ctx context.Context, id string, size api.Bytes) error {
	if err := checkSize(id, size); err != nil {
		return err
	}
	end, err := p.gate.EnterVolume(ctx, id)
	if err != nil {
		return err
	}
	defer end()
	dir, sub, err := p.subvolume(id)
	if err != nil {
		return err
	}
	defer dir.Close()
	used, _, err := p.quota.usage(sub)
	if err != nil {
		return err
	}
	if size > 0 && used > size {
		return api.Errorf(api.CodeConflict, "resize volume %q to %v: %v of it are in use", id, size, used).
			WithHint("delete files in it, or choose a larger size")
	}
	if err := p.quota.limit(p.dir, sub, size); err != nil {
		return p.failed("resize", id, err)
	}
	p.commit.soon()
	return nil
}

// Usage implements storage.Driver.
func (p *pool) Usage(ctx context.Context, id string) (used, size api.Bytes, err error) {
	end, err := p.gate.EnterVolume(ctx, id)
	if err != nil {
		return 0, 0, err
	}
	defer end()
	dir, sub, err := p.subvolume(id)
	if err != nil {
		return 0, 0, err
	}
	defer dir.Close()
	return p.quota.usage(sub)
}

// Path implements storage.Driver.
func (p *pool) Path(ctx context.Context, id string) (string, error) {
	end, err := p.gate.EnterVolume(ctx, id)
	if err != nil {
		return "", err
	}
	defer end()
	dir, _, err := p.subvolume(id)
	if err != nil {
		return "", err
	}
	defer dir.Close()
	return dir.Name(), nil
}

// Release implements storage.Driver; a subvolume needs nothing.
func (p *pool) Release(context.Context, string) error { return nil }

// List implements storage.Driver.
func (p *pool) List(ctx context.Context) ([]string, error) {
	leave, err := p.gate.Enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	names, err := p.names()
	if err != nil {
		return nil, fmt.Errorf("list volumes of pool %q: %w", p.config.Name, err)
	}
	names = slices.DeleteFunc(names, func(name string) bool { return strings.HasPrefix(name, ".") })
	slices.Sort(names)
	return names, nil
}
