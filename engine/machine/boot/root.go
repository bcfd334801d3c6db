package boot

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine/internal/mountfd"
)

// Places in the initramfs.
const (
	imageDir = "/image"
	diskDir  = "/disk"
	rootDir  = "/root"
	filesDir = "/files"
)

// mountRoot puts the guest's root together: the image below, and what the
// guest writes on the root disk.
func (m *machine) mountRoot() error {
	if err := m.mountDisk(diskImage, "erofs", imageDir, unix.MS_RDONLY); err != nil {
		return err
	}
	if err := m.mountDisk(diskRoot, "ext4", diskDir, 0); err != nil {
		return err
	}
	var err error
	if m.disk, err = openDir(diskDir); err != nil {
		return err
	}
	for _, name := range []string{"upper", "work"} {
		if err := os.Mkdir(path.Join(diskDir, name), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("root disk: %w", err)
		}
	}
	// As in containers, so that a layer is the same tree behind every wall.
	options := "lowerdir=" + imageDir + ",upperdir=" + diskDir + "/upper,workdir=" + diskDir + "/work,index=off,metacopy=off,redirect_dir=on"
	if err := mount("overlay", "overlay", rootDir, 0, options); err != nil {
		return fmt.Errorf("put image and root disk together: %w", err)
	}
	m.root, err = openDir(rootDir)
	return err
}

// mountDisk mounts one of the machine's disks.
func (m *machine) mountDisk(name, kind, at string, flags uintptr) error {
	dev, err := m.findDisk(name, deviceGrace)
	if err != nil {
		return err
	}
	options := ""
	if kind == "ext4" {
		options = lazyTables
	}
	if err := mount(dev, kind, at, flags, options); err != nil {
		return api.Errorf(api.CodeInvalid, "mount the disk %q: %w", name, explain(err))
	}
	if kind == "ext4" {
		grown(dev)
	}
	return nil
}

// lazyTables leaves tables of inodes that nobody uses unwritten: the disk reads
// as zeros there, and would take 1.6 % of its size on the host at once
// (measured: 160 MiB of 10 GiB).
const lazyTables = "noinit_itable"

func mount(source, kind, at string, flags uintptr, options string) error {
	if err := os.Mkdir(at, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return unix.Mount(source, at, kind, flags, options)
}

func openDir(name string) (*os.File, error) {
	return os.OpenFile(name, unix.O_PATH|unix.O_DIRECTORY, 0)
}

const noExec = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC

// kernelMount is a file system without a disk.
type kernelMount struct {
	at   string
	fs   *mountfd.FS
	attr int
}

// mountKernel moves the kernel's file systems to the guest's root and adds
// those that belong there.
func (m *machine) mountKernel() error {
	shm := m.boot.ShmSize
	if shm <= 0 {
		shm = defaultShm
	}
	mounts := []kernelMount{
		// Group 5 is tty wherever there is one.
		{"/dev/pts", mountfd.New("devpts").String("ptmxmode", "0666").String("mode", "0620").String("gid", "5"), unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC},
		{"/dev/shm", mountfd.New("tmpfs").String("mode", "1777").String("size", strconv.FormatInt(shm, 10)), noExec &^ unix.MOUNT_ATTR_NOEXEC},
		{"/dev/mqueue", mountfd.New("mqueue"), noExec},
		{"/sys/fs/cgroup", mountfd.New("cgroup2"), noExec},
	}
	if m.boot.System {
		mounts = append(mounts, kernelMount{"/run", mountfd.New("tmpfs").String("mode", "0755"), unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV})
	}
	for _, l := range devLinks {
		if err := os.Symlink(l[1], "/dev/"+l[0]); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("fill /dev: %w", err)
		}
	}
	for _, name := range []string{"/dev", "/proc", "/sys"} {
		at, err := mountfd.Target(m.root, name, true)
		if err != nil {
			return fmt.Errorf("mount %s: %w", name, err)
		}
		err = unix.MoveMount(unix.AT_FDCWD, name, int(at.Fd()), "", unix.MOVE_MOUNT_T_EMPTY_PATH)
		at.Close()
		if err != nil {
			return fmt.Errorf("mount %s: %w", name, err)
		}
	}
	for _, f := range mounts {
		if err := m.attach(f.fs, f.attr, f.at); err != nil {
			return err
		}
	}
	return nil
}

// defaultShm is what container tools agree on.
const defaultShm = 64 << 20

// devLinks are what user space adds to the kernel's devices.
var devLinks = [][2]string{
	{"fd", "/proc/self/fd"},
	{"stdin", "/proc/self/fd/0"},
	{"stdout", "/proc/self/fd/1"},
	{"stderr", "/proc/self/fd/2"},
}

// attach mounts fs at a directory of the guest.
func (m *machine) attach(fs *mountfd.FS, attr int, name string) error {
	f, err := fs.Mount(attr)
	if err != nil {
		return fmt.Errorf("mount %s: %w", name, err)
	}
	defer f.Close()
	return m.place(f, name, true)
}

// place attaches a mount at a path of the guest, links in which are followed
// inside the guest's root.
func (m *machine) place(f *os.File, target string, dir bool) error {
	at, err := mountfd.Target(m.root, target, dir)
	if err == nil {
		err = mountfd.Attach(f, at)
		at.Close()
	}
	if err != nil {
		return api.Errorf(api.CodeInvalid, "mount at %s in the guest: %w", target, err).
			WithHint("choose a target that the image has as a %s, or doesn't have", map[bool]string{true: "directory", false: "file"}[dir])
	}
	return nil
}

// mountFiles puts the host's files in their places. They lie in memory: the
// root disk keeps what is the guest's own.
func (m *machine) mountFiles() error {
	if err := mount("tmpfs", "tmpfs", filesDir, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0755,size=4m"); err != nil {
		return fmt.Errorf("prepare files: %w", err)
	}
	dir, err := openDir(filesDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	for _, f := range []struct{ target, content string }{
		{"/etc/hostname", m.boot.Hostname + "\n"}, {"/etc/hosts", m.boot.Hosts}, {"/etc/resolv.conf", m.boot.Resolv},
	} {
		if f.content == "" {
			continue
		}
		name := path.Base(f.target)
		if err := os.WriteFile(path.Join(filesDir, name), []byte(f.content), 0o644); err != nil {
			return fmt.Errorf("prepare %s: %w", f.target, err)
		}
		c, err := mountfd.Clone(dir, name, false)
		if err != nil {
			return err
		}
		err = m.place(c, f.target, false)
		c.Close()
		if err != nil {
			return err
		}
	}
	if err := unix.Sethostname([]byte(m.boot.Hostname)); err != nil {
		return fmt.Errorf("set host name %q: %w", m.boot.Hostname, err)
	}
	return nil
}

func (m *machine) mountVolumes() error {
	for _, v := range m.boot.Mounts {
		dev, err := m.findDisk(v.Disk, deviceGrace)
		if err != nil {
			return err
		}
		f, err := mountVolume(dev, v.ReadOnly)
		if err != nil {
			return api.Errorf(api.CodeInvalid, "mount the disk %q for %s: %w", v.Disk, v.Target, explain(err))
		}
		if !v.ReadOnly {
			m.volumes = append(m.volumes, f)
		} else {
			defer f.Close()
		}
		if err := m.place(f, v.Target, true); err != nil {
			return err
		}
	}
	return nil
}

// mountVolume mounts a volume. One that is read-only, and whose last guest
// died, may have a journal that nobody here can replay: the disk is read-only
// too.
func mountVolume(dev string, readOnly bool) (*os.File, error) {
	const attr = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
	volume := func() *mountfd.FS { return mountfd.New("ext4").String("source", dev) }
	if !readOnly {
		f, err := volume().Flag(lazyTables).Mount(attr)
		if err == nil {
			grown(dev)
		}
		return f, err
	}
	f, err := volume().Flag("ro").Mount(attr | unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		if f, replay := volume().Flag("ro").Flag("norecovery").Mount(attr | unix.MOUNT_ATTR_RDONLY); replay == nil {
			return f, nil
		}
	}
	return f, err
}

// enter makes the guest's root the root directory. The initramfs can't be
// unmounted, so the root is put on it, and what is in it freed.
func (m *machine) enter() error {
	_ = os.RemoveAll(modulesDir)
	_ = os.Remove("/init")
	if err := unix.Fchdir(int(m.root.Fd())); err != nil {
		return fmt.Errorf("enter the guest's root: %w", err)
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("make the guest's root the root directory: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("enter the guest's root: %w", err)
	}
	return os.Chdir("/")
}

// sealRoot makes the root read-only when all mount points are there.
func (m *machine) sealRoot() error {
	if !m.boot.ReadOnlyRoot {
		return nil
	}
	a := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(int(m.root.Fd()), "", unix.AT_EMPTY_PATH, &a); err != nil {
		return fmt.Errorf("make the root read-only: %w", err)
	}
	return nil
}
