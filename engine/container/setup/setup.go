package setup

import (
	"fmt"
	"net"
	"os"
	"os/signal"
	"path"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine/internal/confine"
	"github.com/cleave-project/cleave/engine/internal/handover"
	"github.com/cleave-project/cleave/engine/internal/mountfd"
)

// builder holds what is open while the wall is being built.
type builder struct {
	spec    *Spec
	root    *os.File // the guest's root, a mount
	kit     *os.File
	volumes []*os.File
	console *os.File // nil without
	proc    *os.File // a procfs of the guest's namespaces, root directory
}

// Run accepts the host's connection on the socket with descriptor listener,
// builds the wall, and executes the guest's init, or this program with the
// arguments that Resume takes. It returns only with an error, which the host
// has been told of. The caller holds its thread (runtime.LockOSThread).
func Run(listener int) error {
	fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
	if err != nil {
		return fmt.Errorf("wait for the host: %w", err)
	}
	conn, err := handover.Connection(fd)
	if err != nil {
		return err
	}
	err = run(conn, listener)
	handover.Answer(conn, err)
	return err
}

func run(conn *net.UnixConn, listener int) error {
	spec, mounts, err := receive(conn)
	if err != nil {
		return err
	}
	defer handover.CloseAll(mounts)
	b := &builder{spec: spec, root: mounts[0], kit: mounts[1], volumes: mounts[2:]}
	if spec.Terminal {
		last := len(b.volumes) - 1
		b.console, b.volumes = b.volumes[last], b.volumes[:last]
	}
	if err := b.buildRoot(); err != nil {
		return err
	}
	// The message that the network is there is for the program that is
	// executed next; that it has come is what counts here.
	if err := waitReadable(conn); err != nil {
		return fmt.Errorf("wait for the network: %w", err)
	}
	if err := b.finish(); err != nil {
		return err
	}
	handover.CloseAll(mounts)
	if err := b.checkDescriptors(); err != nil {
		return err
	}
	b.proc.Close()
	if err := b.dropPrivileges(); err != nil {
		return err
	}
	return next(conn, listener, spec.System)
}

// buildRoot does what needs no network. The order matters: procfs and sysfs
// can be mounted only while the host's are still in the mount namespace, and
// volumes come after all that is ours, so that nothing of ours is resolved
// through them.
func (b *builder) buildRoot() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("cut the mount namespace off: %w", err)
	}
	var err error
	b.proc, err = mountfd.New("proc").Mount(unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return err
	}
	return inOrder(b.attachRoot, b.mountProc, b.mountSys, b.mountDev, b.mountFiles, b.mountVolumes, b.name, b.releaseTerminal)
}

// finish does the rest. Parts of procfs are covered when the last setting
// has been written.
func (b *builder) finish() error {
	return inOrder(b.network, b.limit, b.coverProc, b.sealRoot, func() error { return confine.EnterRoot(b.root) })
}

func inOrder(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// attachRoot puts kit and root into this mount namespace: parts of a kit
// that is in it can be cloned on every kernel, and pivot_root(2) wants a
// mount in it. The root goes on top of the host's; the kit must not go there
// too, or what EnterRoot lets go of would be the kit, with the host's root
// left below.
func (b *builder) attachRoot() error {
	for _, a := range []struct {
		mount *os.File
		at    string
	}{{b.kit, "/proc"}, {b.root, "/"}} {
		at, err := os.OpenFile(a.at, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		err = mountfd.Attach(a.mount, at)
		at.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// sealRoot makes the root read-only once all mount points are there.
func (b *builder) sealRoot() error {
	if !b.spec.ReadOnlyRoot {
		return nil
	}
	a := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(int(b.root.Fd()), "", unix.AT_EMPTY_PATH, &a); err != nil {
		return fmt.Errorf("make the root read-only: %w", err)
	}
	return nil
}

// mountFiles puts the files that the host wrote in their places, links in
// which are followed inside the guest's root.
func (b *builder) mountFiles() error {
	for _, f := range b.spec.Files {
		m, err := mountfd.Clone(b.kit, path.Join("files", f.Name), false)
		if err != nil {
			return err
		}
		err = b.place(m, f.Target, false)
		m.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *builder) mountVolumes() error {
	for i, v := range b.spec.Mounts {
		m := b.volumes[i]
		if v.Clone {
			var err error
			if m, err = mountfd.Clone(m, "", false); err != nil {
				return err
			}
			defer m.Close()
		}
		if err := b.place(m, v.Target, v.Dir); err != nil {
			return err
		}
	}
	return nil
}

// place attaches a mount at a path of the guest.
func (b *builder) place(m *os.File, target string, dir bool) error {
	at, err := mountfd.Target(b.root, target, dir)
	if err == nil {
		err = mountfd.Attach(m, at)
		at.Close()
	}
	if err != nil {
		return api.Errorf(api.CodeInvalid, "mount at %s in the guest: %w", target, err).
			WithHint("choose a target that the image has as a %s, or doesn't have", map[bool]string{true: "directory", false: "file"}[dir])
	}
	return nil
}

func (b *builder) name() error {
	if err := unix.Sethostname([]byte(b.spec.Hostname)); err != nil {
		return fmt.Errorf("set host name %q: %w", b.spec.Hostname, err)
	}
	return nil
}

// releaseTerminal gives up the terminal that this process controls, so that
// the entry point's session, or a getty, can take it. The kernel sends the
// leaving leader SIGHUP (tty_ioctl(4), TIOCNOTTY), which must not end it.
func (b *builder) releaseTerminal() error {
	if !b.spec.Terminal {
		return nil
	}
	signal.Ignore(unix.SIGHUP)
	defer signal.Reset(unix.SIGHUP)
	if err := unix.IoctlSetInt(0, unix.TIOCNOTTY, 0); err != nil && err != unix.ENOTTY {
		return fmt.Errorf("release the terminal: %w", err)
	}
	return nil
}

// limit sets namespaced kernel settings and resource limits. The host has
// raised the hard limits already, which this process couldn't.
func (b *builder) limit() error {
	for _, s := range b.spec.Sysctls {
		if err := b.sysctl(s[0], s[1]); err != nil {
			return api.Errorf(api.CodeInvalid, "set sysctl %s: %w", s[0], err).WithField("spec.sysctls")
		}
	}
	for _, l := range b.spec.Limits {
		// This call, and not prlimit(2), because the runtime puts back its
		// own idea of RLIMIT_NOFILE in children unless it saw a change.
		if err := syscall.Setrlimit(l.Resource, &syscall.Rlimit{Cur: l.Soft, Max: l.Hard}); err != nil {
			return fmt.Errorf("set resource limit %d to %d:%d: %w", l.Resource, l.Soft, l.Hard, err)
		}
	}
	return nil
}

// sysctl writes below /proc/sys of our own procfs, in which no mount and no
// link can divert the write.
func (b *builder) sysctl(name, value string) error {
	f, err := mountfd.Open(b.proc, "sys/"+name, unix.O_WRONLY, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_XDEV)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(value)
	return err
}

// checkDescriptors refuses to go on while something of the host is open:
// one directory would be a way out (CVE-2024-21626).
func (b *builder) checkDescriptors() error {
	d, err := mountfd.Open(b.proc, "self/fd", unix.O_RDONLY|unix.O_DIRECTORY, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_XDEV)
	if err != nil {
		return err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		var fd int
		if _, err := fmt.Sscan(name, &fd); err != nil || fd <= 2 || fd == int(d.Fd()) || fd == int(b.proc.Fd()) {
			continue
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			continue // the runtime closed it meanwhile
		}
		// Sockets are the listener and the host's connection; anonymous
		// inodes, which have no type, the runtime's own.
		if t := st.Mode & unix.S_IFMT; t != unix.S_IFSOCK && t != 0 {
			return fmt.Errorf("descriptor %d of type %#o is left open in the guest", fd, t)
		}
	}
	return nil
}
