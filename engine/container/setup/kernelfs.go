package setup

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine/internal/mountfd"
)

// The kernel's files that no guest has business with: what container tools
// agree on (OCI runtime-spec config-linux.md, "Masked Paths").
var (
	maskedProc = []string{
		"acpi", "asound", "interrupts", "kcore", "keys", "latency_stats",
		"sched_debug", "scsi", "timer_list", "timer_stats",
	}
	maskedSys    = []string{"firmware", "devices/virtual/powercap"}
	readOnlyProc = []string{"bus", "fs", "irq", "sysrq-trigger"}
)

const noExec = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC

// ownDir opens a top-level directory that a kernel file system goes to. It
// must be a directory of the image's: a link there is never meant well.
func (b *builder) ownDir(name string) (*os.File, error) {
	for range 2 {
		f, err := mountfd.Open(b.root, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW,
			unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_XDEV)
		switch {
		case err == nil:
			return f, nil
		case !errors.Is(err, os.ErrNotExist):
			return nil, api.Errorf(api.CodeInvalid, "image: /%s is not a directory: %w", name, err)
		}
		if err := unix.Mkdirat(int(b.root.Fd()), name, 0o755); err != nil && err != unix.EEXIST {
			return nil, fmt.Errorf("make /%s in the guest: %w", name, err)
		}
	}
	return nil, api.Errorf(api.CodeInvalid, "image: /%s can't be made a directory", name)
}

// attachDir attaches a mount to a top-level directory.
func (b *builder) attachDir(m *os.File, name string) error {
	at, err := b.ownDir(name)
	if err != nil {
		return err
	}
	defer at.Close()
	return mountfd.Attach(m, at)
}

func (b *builder) mountProc() error { return b.attachDir(b.proc, "proc") }

// coverProc covers parts of procfs. The covers are ours, by descriptor, and
// so are the places: nothing of the image has a part in it (CVE-2025-31133,
// CVE-2025-52881).
func (b *builder) coverProc() error {
	for _, name := range maskedProc {
		if err := b.mask(b.proc, name); err != nil {
			return err
		}
	}
	ro := readOnlyProc
	if !b.spec.System {
		// A system guest's init sets its own namespaces' values; the others
		// belong to ids that it doesn't have.
		ro = append([]string{"sys"}, ro...)
	}
	for _, name := range ro {
		if err := b.readOnly(b.proc, name); err != nil {
			return err
		}
	}
	return nil
}

// mask covers a file with a null device and a directory with an empty one.
func (b *builder) mask(fs *os.File, name string) error {
	at, err := inFS(fs, name)
	if err != nil || at == nil {
		return err
	}
	defer at.Close()
	st, err := at.Stat()
	if err != nil {
		return err
	}
	cover, attr := "dev/null", uint64(0)
	if st.IsDir() {
		cover, attr = "empty", unix.MOUNT_ATTR_RDONLY
	}
	m, err := mountfd.Clone(b.kit, cover, false)
	if err != nil {
		return err
	}
	defer m.Close()
	if attr != 0 {
		if err := mountfd.SetAttr(m, attr|noExec); err != nil {
			return err
		}
	}
	return mountfd.Attach(m, at)
}

// readOnly covers a part of a file system with a read-only view of itself.
func (b *builder) readOnly(fs *os.File, name string) error {
	at, err := inFS(fs, name)
	if err != nil || at == nil {
		return err
	}
	defer at.Close()
	m, err := mountfd.Clone(at, "", false)
	if err != nil {
		return err
	}
	defer m.Close()
	if err := mountfd.SetAttr(m, unix.MOUNT_ATTR_RDONLY); err != nil {
		return err
	}
	return mountfd.Attach(m, at)
}

// inFS opens a file of a kernel file system, and nothing that isn't in it; nil
// if this kernel doesn't have it.
func inFS(fs *os.File, name string) (*os.File, error) {
	f, err := mountfd.Open(fs, name, unix.O_PATH|unix.O_NOFOLLOW,
		unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_XDEV)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return f, err
}

// mountSys attaches a read-only sysfs, which shows the guest's network
// devices, and the guest's own cgroups in it. That it is read-only tells
// systemd's udev to stay away.
func (b *builder) mountSys() error {
	sys, err := mountfd.New("sysfs").Mount(noExec | unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		return err
	}
	defer sys.Close()
	if err := b.attachDir(sys, "sys"); err != nil {
		return err
	}
	for _, name := range maskedSys {
		if err := b.mask(sys, name); err != nil {
			return err
		}
	}
	at, err := inFS(sys, "fs/cgroup")
	if err != nil || at == nil {
		return err
	}
	defer at.Close()
	return b.mountCgroups(at)
}

// mountCgroups attaches the hierarchies that the guest has a group in, as
// its cgroup namespace shows them.
func (b *builder) mountCgroups(at *os.File) error {
	base := at
	if len(b.spec.Cgroups) > 1 {
		m, err := mountfd.Clone(b.kit, "cgroup", false)
		if err != nil {
			return err
		}
		defer m.Close()
		if err := mountfd.SetAttr(m, noExec|unix.MOUNT_ATTR_RDONLY); err != nil {
			return err
		}
		if err := mountfd.Attach(m, at); err != nil {
			return err
		}
		base = m
	}
	for _, c := range b.spec.Cgroups {
		if err := mountCgroup(c, base); err != nil {
			return err
		}
	}
	return nil
}

func mountCgroup(c Cgroup, base *os.File) error {
	attr := noExec
	if !c.Write {
		attr |= unix.MOUNT_ATTR_RDONLY
	}
	kind := "cgroup"
	if c.V2 {
		kind = "cgroup2"
	}
	fs := mountfd.New(kind)
	for _, o := range c.Options {
		if name, ok := strings.CutPrefix(o, "name="); ok {
			fs.Flag("none").String("name", name)
		} else {
			fs.Flag(o)
		}
	}
	m, err := fs.Mount(attr)
	if err != nil {
		return err
	}
	defer m.Close()
	if c.Name == "" {
		return mountfd.Attach(m, base)
	}
	at, err := mountfd.Open(base, c.Name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return err
	}
	defer at.Close()
	return mountfd.Attach(m, at)
}

// mountDev attaches the devices, and what a guest mounts itself because it
// belongs to its namespaces.
func (b *builder) mountDev() error {
	dev, err := mountfd.Clone(b.kit, "dev", false)
	if err != nil {
		return err
	}
	defer dev.Close()
	if err := b.attachDir(dev, "dev"); err != nil {
		return err
	}
	shm := strconv.FormatInt(b.spec.ShmSize, 10)
	for _, m := range []struct {
		at string
		fs *mountfd.FS
	}{
		// Group 5 is tty wherever there is one. All guests share 3,072
		// terminals by default (kernel.pty.max less pty.reserve), of which one
		// guest is not to take all.
		{"pts", mountfd.New("devpts").String("ptmxmode", "0666").String("mode", "0620").String("gid", "5").String("max", "1024")},
		{"shm", mountfd.New("tmpfs").String("mode", "1777").String("size", shm)},
		{"mqueue", mountfd.New("mqueue")},
	} {
		attr := noExec
		if m.at == "pts" {
			attr = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC
		}
		if err := attachIn(dev, m.at, m.fs, attr); err != nil {
			return err
		}
	}
	if b.console != nil {
		// The place is in our own file system, and the terminal came as a
		// mount: no path to divert (CVE-2025-52565).
		at, err := mountfd.Open(dev, "console", unix.O_PATH|unix.O_NOFOLLOW, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_XDEV)
		if err != nil {
			return err
		}
		defer at.Close()
		if err := mountfd.Attach(b.console, at); err != nil {
			return err
		}
	}
	if !b.spec.System {
		return nil
	}
	run, err := b.ownDir("run")
	if err != nil {
		return err
	}
	defer run.Close()
	return attachIn(run, "", mountfd.New("tmpfs").String("mode", "0755"), unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
}

// attachIn mounts fs at a directory of dir, or at dir itself.
func attachIn(dir *os.File, name string, fs *mountfd.FS, attr int) error {
	m, err := fs.Mount(attr)
	if err != nil {
		return err
	}
	defer m.Close()
	if name == "" {
		return mountfd.Attach(m, dir)
	}
	at, err := mountfd.Open(dir, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_XDEV)
	if err != nil {
		return err
	}
	defer at.Close()
	return mountfd.Attach(m, at)
}
