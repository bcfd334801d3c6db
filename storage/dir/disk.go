package dir

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/internal/loop"
	"github.com/cleave-project/cleave/storage/internal/fsmount"
	"github.com/cleave-project/cleave/storage/internal/hostdisk"
)

const (
	minDisk      = 16 * api.MiB
	ext4Block    = 4096                        // no less than loop.BlockSize
	reqResizeFS  = 1<<30 | 8<<16 | 'f'<<8 | 16 // EXT4_IOC_RESIZE_FS
	leastJournal = 4                           // MiB; mke2fs takes no smaller
	mostJournal  = 64
)

// makeDisk fills a volume directory with a file system in a file. mkfs.ext4
// takes 3 ms whatever the size: the file reads as zeroes, so that there are
// no tables to clear.
func (p *pool) makeDisk(ctx context.Context, dir string, size api.Bytes) error {
	mkfs, err := exec.LookPath("mkfs.ext4")
	if err != nil {
		return api.Errorf(api.CodeUnsupported, "make a volume with a size: %w", err).
			WithHint("install e2fsprogs, or put the pool on a file system with project quotas")
	}
	room, err := hostdisk.Room(p.volumes)
	if err != nil {
		return err
	}
	if size > room {
		return api.Errorf(api.CodeNoSpace, "make a volume of %v: the disk of pool %q has room for %v, and all of a volume is reserved", size, p.config.Name, room).
			WithHint("choose a smaller size, use a pool of driver btrfs, or mount the disk with project quotas")
	}
	f, err := os.OpenFile(filepath.Join(dir, diskName), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := hostdisk.Reserve(f, 0, int64(size)); err != nil {
		return err
	}
	journal := min(max(int(size/api.MiB/128), leastJournal), mostJournal)
	// nodiscard: a discard would undo the reservation.
	cmd := exec.CommandContext(ctx, mkfs, "-q", "-F", "-b", strconv.Itoa(ext4Block), "-m", "0", "-I", "256",
		"-J", "size="+strconv.Itoa(journal), "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1,assume_storage_prezeroed=1", f.Name())
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", mkfs, f.Name(), err, bytes.TrimSpace(out))
	}
	return errors.Join(f.Sync(), hostdisk.SyncDir(dir))
}

// point is where a volume's disk is mounted.
func (p *pool) point(id string) string { return filepath.Join(p.run, id) }

// mounted tells whether something is mounted at the point, and the device
// number of that.
func (p *pool) mounted(point string) (uint64, bool, error) {
	var at, above unix.Stat_t
	err := unix.Lstat(point, &at)
	if errors.Is(err, unix.ENOENT) {
		return 0, false, nil
	}
	if err == nil {
		err = unix.Lstat(p.run, &above)
	}
	if err != nil {
		return 0, false, fmt.Errorf("look for a mount at %s: %w", point, err)
	}
	return at.Dev, at.Dev != above.Dev, nil
}

// mount makes a disk reachable and returns its root directory.
func (p *pool) mount(ctx context.Context, id string, v *part) (string, error) {
	point := p.point(id)
	root := filepath.Join(point, treeName)
	number, mounted, err := p.mounted(point)
	if err != nil {
		return "", err
	}
	if mounted {
		node := fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(number), unix.Minor(number))
		link, _ := os.Readlink(node) // no block device: not ours
		dev, err := loop.Open("/dev/"+filepath.Base(link), v.file)
		if err != nil {
			return "", err
		}
		if dev == nil {
			return "", api.Errorf(api.CodeConflict, "mount volume %q: something else is mounted at %s", id, point).
				WithHint("if no guest uses it any more, unmount it")
		}
		return root, dev.Close()
	}
	size, err := p.size(v)
	if err != nil {
		return "", err
	}
	if err := hostdisk.Reserve(v.file, 0, int64(size)); err != nil { // a copied file may have holes
		return "", p.failed("mount", id, err)
	}
	dev, err := p.attach(ctx, v.file)
	if err != nil {
		return "", api.Errorf(api.CodeNoResources, "mount volume %q: %w", id, err)
	}
	defer p.settleDevice(id, dev) // from here on the mount holds it
	if err := os.MkdirAll(point, 0o700); err != nil {
		return "", err
	}
	err = fsmount.Mount("ext4", dev.Path(), point, unix.MOUNT_ATTR_NOATIME,
		fsmount.Option{Key: "errors", Value: "remount-ro"}, fsmount.Option{Key: "nodiscard"})
	if err != nil && !fsmount.Damaged(err) {
		return "", fmt.Errorf("mount volume %q: %w", id, err)
	}
	if err != nil {
		return "", api.Errorf(api.CodeCorrupt, "mount volume %q: %w", id, err).
			WithHint("look at it with: e2fsck -fn %s; it is left as it is", v.file.Name())
	}
	if err := settleDisk(dev, root); err != nil {
		return "", errors.Join(p.failed("mount", id, err), p.unmount(id))
	}
	return root, nil
}

// settleDevice keeps discards away from the device, and lets go of it. The
// file system on it asks for none by itself, so that nobody needs to wait
// for this but unmount.
func (p *pool) settleDevice(id string, dev *loop.Device) {
	done := make(chan struct{})
	p.mu.Lock()
	p.settling[id] = done
	p.mu.Unlock()
	p.background.Go(func() {
		defer close(done)
		_ = dev.RefuseDiscards() // the next mount reserves again what is punched
		dev.Close()
	})
}

// settled waits until nothing but mounts holds the volume's device.
func (p *pool) settled(id string) {
	p.mu.Lock()
	done := p.settling[id]
	delete(p.settling, id)
	p.mu.Unlock()
	if done != nil {
		<-done
	}
}

// settleDisk prepares a file system that was just mounted.
func settleDisk(dev *loop.Device, root string) error {
	// Instead of splitting an unwritten extent ext4 may have the device zero
	// a few blocks of it, which a loop device does by punching a hole.
	knob := filepath.Join("/sys/fs/ext4", filepath.Base(dev.Path()), "extent_max_zeroout_kb")
	if err := os.WriteFile(knob, []byte("0"), 0); err != nil {
		return err
	}
	if _, err := os.Lstat(root); err == nil {
		return nil
	}
	f, err := makeRoot(root)
	if err != nil {
		return err
	}
	return f.Close()
}

// attach finds the loop device of the file or makes one. Even with nothing
// mounted at the volume's point a guest that is still about may hold one.
func (p *pool) attach(ctx context.Context, file *os.File) (*loop.Device, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return nil, err
	}
	key := loop.Backing{Dev: st.Dev, Ino: st.Ino}
	p.mu.Lock()
	known, ok := p.loops[key]
	p.mu.Unlock()
	if ok {
		if dev, err := loop.Open(known, file); dev != nil || err != nil {
			return dev, err
		}
	}
	dev, err := loop.Attach(ctx, file)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.loops[key] = dev.Path()
	return dev, nil
}

// unmount takes the volume's disk from its point, if it is there. Guests
// that have mounts of their own of it keep them.
func (p *pool) unmount(id string) error {
	point := p.point(id)
	_, mounted, err := p.mounted(point)
	if err != nil {
		return err
	}
	if mounted {
		if err := unix.Unmount(point, unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", point, err)
		}
	}
	p.settled(id)
	if err := os.Remove(point); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// diskUsage asks the mounted file system, else its superblock.
func (p *pool) diskUsage(id string, v *part) (used, size api.Bytes, err error) {
	size, err = p.size(v)
	if err != nil {
		return 0, 0, err
	}
	point := p.point(id)
	_, mounted, err := p.mounted(point)
	if err != nil {
		return 0, 0, err
	}
	if mounted {
		var st unix.Statfs_t
		if err := unix.Statfs(point, &st); err != nil {
			return 0, 0, fmt.Errorf("get free space of volume %q: %w", id, err)
		}
		return api.Bytes(st.Blocks-st.Bfree) * api.Bytes(st.Bsize), size, nil
	}
	used, err = superblockUse(v.file)
	return used, size, err
}

// superblockUse reads how much of an unmounted file system is in use beyond
// its own tables (Documentation/filesystems/ext4/super.rst).
func superblockUse(f *os.File) (api.Bytes, error) {
	var sb [1024]byte
	if _, err := f.ReadAt(sb[:], 1024); err != nil {
		return 0, fmt.Errorf("read superblock of %s: %w", f.Name(), err)
	}
	le := binary.LittleEndian
	if le.Uint16(sb[0x38:]) != 0xef53 {
		return 0, api.Errorf(api.CodeCorrupt, "%s has no ext4 superblock", f.Name()).
			WithHint("look at it with: e2fsck -fn %s; it is left as it is", f.Name())
	}
	blocks := uint64(le.Uint32(sb[0x4:])) | uint64(le.Uint32(sb[0x150:]))<<32
	free := uint64(le.Uint32(sb[0xc:])) | uint64(le.Uint32(sb[0x158:]))<<32
	overhead := uint64(le.Uint32(sb[0x248:]))
	if taken := free + overhead; taken < blocks {
		return api.Bytes(blocks-taken) * ext4Block, nil
	}
	return 0, nil
}

// resizeDisk lets the volume grow.
func (p *pool) resizeDisk(ctx context.Context, id string, v *part, has, size api.Bytes) error {
	if size < has {
		return api.Errorf(api.CodeUnsupported, "resize volume %q from %v to %v: its ext4 can't shrink", id, has, size).
			WithHint("make a smaller volume and copy the files")
	}
	room, err := hostdisk.Room(p.volumes)
	if err != nil {
		return err
	}
	if size-has > room {
		return api.Errorf(api.CodeNoSpace, "resize volume %q to %v: the disk of pool %q has room for %v more", id, size, p.config.Name, room)
	}
	_, mounted, err := p.mounted(p.point(id))
	if err != nil {
		return err
	}
	if size > has { // else a crash came between this and the next step
		if err := hostdisk.Reserve(v.file, int64(has), int64(size)); err != nil {
			return p.failed("resize", id, err)
		}
	}
	if mounted {
		err = p.growMounted(ctx, id, v, size)
	} else {
		err = growUnmounted(ctx, v.file)
	}
	if errors.Is(err, unix.EPERM) {
		// Nothing was done yet, so the file can be as long as before.
		err = errors.Join(err, v.file.Truncate(int64(has)))
		return api.Errorf(api.CodeForbidden, "resize volume %q while it is in use: ext4 wants CAP_SYS_RESOURCE for that: %w", id, err).
			WithHint("stop the guests that use it, or give the daemon that capability")
	}
	if err != nil {
		return p.failed("resize", id, err)
	}
	return nil
}

func (p *pool) growMounted(ctx context.Context, id string, v *part, size api.Bytes) error {
	root, err := p.mount(ctx, id, v) // checks what is mounted there
	if err != nil {
		return err
	}
	dev, err := p.attach(ctx, v.file)
	if err != nil {
		return err
	}
	defer dev.Close()
	if err := dev.SetCapacity(); err != nil {
		return err
	}
	f, err := os.Open(root)
	if err != nil {
		return err
	}
	defer f.Close()
	blocks := uint64(size / ext4Block)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), reqResizeFS, uintptr(unsafe.Pointer(&blocks))); errno != 0 {
		return fmt.Errorf("grow %s: %w", v.file.Name(), errno)
	}
	// New tables were zeroed, which a loop device does by punching holes.
	return hostdisk.Reserve(v.file, 0, int64(size))
}

// growUnmounted needs e2fsprogs. With a guest that still holds the file
// system it returns EPERM, like growMounted without the capability.
func growUnmounted(ctx context.Context, file *os.File) error {
	dev, err := loop.Find(file)
	if err != nil {
		return err
	}
	if dev != nil {
		dev.Close()
		return unix.EPERM
	}
	for _, args := range [][]string{{"e2fsck", "-f", "-p", file.Name()}, {"resize2fs", file.Name()}} {
		out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
		var exit *exec.ExitError
		if errors.As(err, &exit) && args[0] == "e2fsck" && exit.ExitCode() == 1 {
			err = nil // it has corrected something
		}
		if err != nil {
			return fmt.Errorf("%s: %w: %s", args[0], err, bytes.TrimSpace(out))
		}
	}
	return nil
}
