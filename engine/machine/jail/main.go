package jail

import (
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine/internal/confine"
	"github.com/cleave-project/cleave/engine/internal/handover"
	"github.com/cleave-project/cleave/engine/internal/mountfd"
)

// connection is the descriptor by which the host is reached.
const connection = FirstFile - 1

// Main is the process: it builds the wall and executes the monitor. It returns
// only with an error, which the host has been told of. The caller holds its
// thread (runtime.LockOSThread).
func Main() error {
	conn, err := handover.Connection(connection)
	if err != nil {
		return err
	}
	err = enter(conn)
	handover.Answer(conn, err)
	return err
}

func enter(conn *net.UnixConn) error {
	m := &message{}
	mounts, err := handover.Receive(conn, m, m.check)
	if err != nil {
		return err
	}
	defer handover.CloseAll(mounts)
	if err := m.standardStreams(); err != nil {
		return err
	}
	if err := m.buildRoot(mounts); err != nil {
		return err
	}
	handover.CloseAll(mounts)
	if err := m.limit(); err != nil {
		return err
	}
	if err := m.keepDescriptors(); err != nil {
		return err
	}
	if err := confine.BoundTo(0); err != nil {
		return err
	}
	if err := confine.NoNewPrivs(); err != nil {
		return err
	}
	if err := confine.LoadFilter(m.Seccomp); err != nil {
		return err
	}
	if err := m.startBeside(); err != nil {
		return err
	}
	if err := confine.Become(ID); err != nil {
		return err
	}
	// From here on only the end of the connection tells that it went well.
	if err := (handover.Report{Started: true}).Send(conn); err != nil {
		return err
	}
	return execError(&m.Program, unix.Exec(m.Program.Exe, m.Program.Args, m.Program.Env))
}

// check refuses a message that doesn't fit the mounts that come with it.
func (m *message) check(files int) error {
	if files == 0 || files != len(m.Mounts) || m.Mounts[0] != "/" {
		return fmt.Errorf("the wall wants %d mounts, got %d", len(m.Mounts), files)
	}
	if len(m.Seccomp) == 0 || len(m.Seccomp)%8 != 0 || len(m.Seccomp)/8 > unix.BPF_MAXINSNS {
		return fmt.Errorf("the wall has a system call filter of %d bytes", len(m.Seccomp))
	}
	if len(m.Program.Args) == 0 || m.Beside != nil && len(m.Beside.Args) == 0 {
		return errors.New("the monitor has no arguments, not even its name")
	}
	return nil
}

// standardStreams gives the streams to the monitor's user, opens them again
// where it wants that, and leaves the terminal that this process controls: its
// end must not be the monitor's (tty_ioctl(4), TIOCNOTTY: the leader of a
// session is sent SIGHUP).
func (m *message) standardStreams() error {
	signal.Ignore(unix.SIGHUP)
	defer signal.Reset(unix.SIGHUP)
	if err := unix.IoctlSetInt(0, unix.TIOCNOTTY, 0); err != nil && err != unix.ENOTTY {
		return fmt.Errorf("release the terminal: %w", err)
	}
	for fd := range 3 {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		_, notTTY := unix.IoctlGetTermios(fd, unix.TCGETS)
		if notTTY == nil || st.Mode&unix.S_IFMT == unix.S_IFIFO {
			if err := unix.Fchown(fd, ID, ID); err != nil {
				return fmt.Errorf("give standard stream %d to the monitor: %w", fd, err)
			}
		}
	}
	streams := m.Program.Std
	if m.Beside != nil {
		streams = slices.Concat(streams, m.Beside.Std)
	}
	for _, s := range streams {
		if err := reopen(s); err != nil {
			return fmt.Errorf("open standard stream %d again: %w", s.Std, err)
		}
	}
	return nil
}

// reopen puts one more opening of a standard stream in its place.
func reopen(s std) error {
	fd, err := unix.Open("/proc/self/fd/"+strconv.Itoa(s.Std), s.Access|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if t, err := unix.IoctlGetTermios(fd, unix.TCGETS); err == nil {
		makeRaw(t)
		if err := unix.IoctlSetTermios(fd, unix.TCSETS, t); err != nil {
			return err
		}
	}
	return unix.Dup3(fd, s.FD, 0)
}

// makeRaw is cfmakeraw(3).
func makeRaw(t *unix.Termios) {
	t.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	t.Cflag = t.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
}

// buildRoot puts the mounts together and makes them the root. A procfs can
// be mounted only while the host's is still in the mount namespace.
func (m *message) buildRoot(mounts []*os.File) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("cut the mount namespace off: %w", err)
	}
	proc, err := mountfd.New("proc").Mount(unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC | unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		return err
	}
	defer proc.Close()
	host, err := os.OpenFile("/", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer host.Close()
	if err := mountfd.Attach(mounts[0], host); err != nil {
		return err
	}
	for i, target := range m.Mounts[1:] {
		if err := attach(mounts[0], target, mounts[i+1]); err != nil {
			return err
		}
	}
	if err := attach(mounts[0], "/proc", proc); err != nil {
		return err
	}
	a := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(int(mounts[0].Fd()), "", unix.AT_EMPTY_PATH, &a); err != nil {
		return fmt.Errorf("make the monitor's root read-only: %w", err)
	}
	return confine.EnterRoot(mounts[0])
}

func attach(root *os.File, target string, m *os.File) error {
	at, err := mountfd.Open(root, target, unix.O_PATH|unix.O_NOFOLLOW, unix.RESOLVE_IN_ROOT)
	if err != nil {
		return err
	}
	defer at.Close()
	return mountfd.Attach(m, at)
}

// limit names the machine, so that the host's name isn't told, and has no
// core dumps: the host's core_pattern may be a program of the host.
func (m *message) limit() error {
	if err := unix.Sethostname([]byte("monitor")); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	unix.Umask(0o077)
	if err := syscall.Setrlimit(unix.RLIMIT_CORE, &syscall.Rlimit{}); err != nil {
		return fmt.Errorf("refuse core dumps: %w", err)
	}
	return nil
}

// keepDescriptors has the monitor inherit its files and nothing else.
func (m *message) keepDescriptors() error {
	end := uint(FirstFile + m.Program.Files)
	if err := unix.CloseRange(connection, connection, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("keep descriptors from the monitor: %w", err)
	}
	if err := unix.CloseRange(end, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("keep descriptors from the monitor: %w", err)
	}
	// What a caller marked so is passed on all the same.
	for fd := FirstFile; fd < int(end); fd++ {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
			return fmt.Errorf("pass descriptor %d to the monitor: %w", fd, err)
		}
	}
	return nil
}

// startBeside starts the other program. As this one's child it ends when
// this one, the first process of its PID namespace, does.
func (m *message) startBeside() error {
	if m.Beside == nil {
		return nil
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	// Descriptor 3 is closed in it: there is nothing to put there.
	files := []uintptr{null.Fd(), null.Fd(), 2, ^uintptr(0)}
	for i := range m.Beside.Files {
		files = append(files, uintptr(FirstFile+m.Program.Files+i))
	}
	_, _, err = syscall.StartProcess(m.Beside.Exe, m.Beside.Args, &syscall.ProcAttr{
		Dir: "/", Env: m.Beside.Env, Files: files,
		Sys: &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{Uid: ID + 1, Gid: ID + 1}},
	})
	return execError(m.Beside, err)
}

func execError(p *program, err error) error {
	if err == nil {
		return nil
	}
	if err == unix.ENOENT || err == unix.EACCES {
		return api.Errorf(api.CodeUnsupported, "the program %s, or what it needs, is not to be had behind the monitor's wall: %w", p.Exe, err)
	}
	return fmt.Errorf("execute %s: %w", p.Exe, err)
}
