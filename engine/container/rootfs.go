package container

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine/internal/mountfd"
)

// features are what the kernel can do with mounts. All of them have a way
// around that is as safe.
type features struct {
	fileEROFS     bool // 6.12: EROFS from a file; else by loop device
	layerFDs      bool // 6.13: overlay layers by descriptor; else by path in a mount namespace of our own
	cloneDetached bool // 6.15: a detached mount can be cloned; else each guest mounts the image's block device
}

// probeFeatures tries them out. EROFS from a file is found out by the first
// image.
func probeFeatures() features {
	f := features{fileEROFS: true}
	m, err := mountfd.New("tmpfs").Mount(0)
	if err != nil {
		return f
	}
	defer m.Close()
	if c, err := mountfd.Clone(m, "", false); err == nil {
		f.cloneDetached = true
		c.Close()
	}
	if fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC); err == nil {
		f.layerFDs = unix.FsconfigSetFd(fd, "lowerdir+", int(m.Fd())) == nil
		unix.Close(fd)
	}
	return f
}

// idmap maps the ids of a detached mount for the guest that userns belongs
// to: id 0 in the file system is the guest's 0.
func idmap(m, userns *os.File, attr uint64) error {
	err := mountfd.IDMap(m, userns, attr)
	if errors.Is(err, unix.EINVAL) {
		return api.Errorf(api.CodeUnsupported, "map the ids of %s: its file system or this kernel can't: %w", m.Name(), err).
			WithHint("put it on ext4, xfs, btrfs or tmpfs; file systems learned it one by one since Linux 5.12")
	}
	return err
}

// overlay makes a guest's root: the image under the root volume's upper
// directory, both with the guest's ids, as a detached mount.
func (f *features) overlay(image, volume *os.File, base uint32) (*os.File, error) {
	options := func(fs *mountfd.FS) *mountfd.FS {
		// index and metacopy tie an upper layer to one lower one by inode, and
		// would break when a root volume is copied.
		return fs.String("source", "cleave").
			String("index", "off").String("metacopy", "off").String("redirect_dir", "on").String("xino", "auto")
	}
	if !f.layerFDs {
		return overlayByPath(image, volume, base, options)
	}
	upper, err := layer(volume, "upper")
	if err != nil {
		return nil, err
	}
	defer upper.Close()
	work, err := layer(volume, "work")
	if err != nil {
		return nil, err
	}
	defer work.Close()
	var m *os.File
	err = asOwner(base, func() (err error) {
		fs := mountfd.New("overlay").FD("lowerdir+", int(image.Fd())).FD("upperdir", int(upper.Fd())).FD("workdir", int(work.Fd()))
		m, err = options(fs).Mount(unix.MOUNT_ATTR_NODEV)
		return err
	})
	runtime.KeepAlive(image)
	return m, err
}

func layer(volume *os.File, name string) (*os.File, error) {
	return mountfd.Open(volume, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS)
}

// asOwner runs f on a thread whose effective ids are the guest's root's and
// which keeps its capabilities.
//
// An overlay remembers the ids it was made with and makes its own files with
// them: with the host's, which the idmapped upper layer can't express, every
// copy up would fail (EOVERFLOW). And the owner of a user namespace has all
// capabilities in it, whichever the host's root lacks (user_namespaces(7),
// "Capabilities").
func asOwner(base uint32, f func() error) error {
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_SECUREBITS, secbitNoSetuidFixup, 0, 0, 0); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("keep capabilities: %w", err)
	}
	err := setEffective(unix.SYS_SETRESGID, base)
	if err == nil {
		err = setEffective(unix.SYS_SETRESUID, base)
	}
	if err == nil {
		err = f()
	}
	// A thread that doesn't come back to what it was is not used again: it
	// ends with its goroutine, which stays locked to it.
	if setEffective(unix.SYS_SETRESUID, 0) == nil && setEffective(unix.SYS_SETRESGID, 0) == nil &&
		unix.Prctl(unix.PR_SET_SECUREBITS, 0, 0, 0, 0) == nil {
		runtime.UnlockOSThread()
	}
	return err
}

// setEffective sets an effective id, and with it that for file systems, of
// the calling thread alone; package syscall's would change all threads.
func setEffective(call uintptr, id uint32) error {
	const same = ^uintptr(0)
	if _, _, e := unix.RawSyscall(call, same, uintptr(id), same); e != 0 {
		return fmt.Errorf("become user %d: %w", id, e)
	}
	return nil
}

// secbitNoSetuidFixup leaves capabilities alone when ids change
// (capabilities(7)).
const secbitNoSetuidFixup = 1 << 2

// overlayByPath is for kernels that take layers as paths only. The paths are
// in a mount namespace that lives as long as this call and nobody else sees.
func overlayByPath(image, volume *os.File, base uint32, options func(*mountfd.FS) *mountfd.FS) (*os.File, error) {
	dir, err := os.MkdirTemp("", "cleave-layers-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(dir)
	var m *os.File
	err = inMountNamespace(func() error {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755"); err != nil {
			return err
		}
		lower, upper := filepath.Join(dir, "l"), filepath.Join(dir, "u")
		for path, f := range map[string]*os.File{lower: image, upper: volume} {
			if err := os.Mkdir(path, 0o755); err != nil {
				return err
			}
			if err := unix.MoveMount(int(f.Fd()), "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
				return fmt.Errorf("attach layer: %w", err)
			}
		}
		fs := mountfd.New("overlay").String("lowerdir", lower).
			String("upperdir", filepath.Join(upper, "upper")).String("workdir", filepath.Join(upper, "work"))
		return asOwner(base, func() (err error) {
			m, err = options(fs).Mount(unix.MOUNT_ATTR_NODEV)
			return err
		})
	})
	return m, err
}

// inMountNamespace runs f on a thread with a mount namespace of its own, which
// ends with the call.
func inMountNamespace(f func() error) error {
	result := make(chan error)
	var try func()
	try = func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		if unix.Gettid() == unix.Getpid() {
			// The main thread stands for the process in /proc: leave it as it
			// is, and busy, so that another one is taken.
			next := make(chan struct{})
			go func() { defer close(next); try() }()
			<-next
			runtime.UnlockOSThread()
			return
		}
		err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS)
		if err == nil {
			err = f()
		}
		result <- err
	}
	go try()
	return <-result
}

// prepareVolume makes the directories of the overlay's upper layer on the
// guest's first start.
func prepareVolume(dir string) error {
	for _, name := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("prepare root volume: %w", err)
		}
	}
	return nil
}
