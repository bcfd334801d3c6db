package setup

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine/internal/handover"
)

// Arguments of this program behind the wall.
const (
	// ArgResume is followed by the descriptor of the host's connection. The
	// listening socket is where Run had it.
	ArgResume = "entry"
	// ArgServe is an agent beside a guest's own init.
	ArgServe = "serve"
)

// next executes what comes after the wall.
func next(conn *net.UnixConn, listener int, system bool) error {
	if system {
		return execInit(conn, listener)
	}
	f, err := conn.File()
	if err != nil {
		return err
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD, 0) // to be inherited
	if err != nil {
		return err
	}
	err = syscall.Exec(ownProgram, []string{os.Args[0], ArgResume, strconv.Itoa(fd)}, os.Environ())
	return fmt.Errorf("execute the agent behind the wall: %w", err)
}

// ownProgram is procfs's link to this program's file. /proc is the procfs
// that setup mounted: nothing of the image has run that could have covered
// it.
const ownProgram = "/proc/self/exe"

// Resume reads what to execute. The caller executes it and calls done once,
// with nil or why it can't be executed. fd is what followed ArgResume.
func Resume(fd string) (e *Entry, done func(error), err error) {
	n, err := strconv.Atoi(fd)
	if err != nil {
		return nil, nil, fmt.Errorf("descriptor %q is not a number", fd)
	}
	conn, err := handover.Connection(n)
	if err != nil {
		return nil, nil, err
	}
	e = &Entry{}
	if _, err = handover.Decode(conn, e); err == nil {
		err = withhold(e.Withheld, e.Surplus)
	}
	if err != nil {
		handover.Answer(conn, err)
		return nil, nil, err
	}
	return e, func(err error) { handover.Answer(conn, err) }, nil
}

// waitReadable waits until there is something to read.
func waitReadable(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var peek error
	err = raw.Read(func(fd uintptr) bool {
		var b [1]byte
		n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		if err == unix.EAGAIN || err == unix.EINTR {
			return false
		}
		if peek = err; err == nil && n == 0 {
			peek = io.ErrUnexpectedEOF
		}
		return true
	})
	return errors.Join(err, peek)
}

// execInit becomes the guest's own init. Before, it starts the agent as a
// child, which the init adopts with all else. The host takes the end of the
// connection, which executing brings, for success.
func execInit(conn *net.UnixConn, listener int) error {
	e := &Entry{}
	if _, err := handover.Decode(conn, e); err != nil {
		return err
	}
	env := append([]string{"container=cleave"}, e.Env...)
	file, err := findProgram(e.Args[0], env)
	if err != nil {
		return err
	}
	if err := startCompanion(listener); err != nil {
		return fmt.Errorf("start the agent beside %s: %w", e.Args[0], err)
	}
	unix.CloseOnExec(listener)
	if err := (handover.Report{Started: true}).Send(conn); err != nil {
		return err
	}
	err = syscall.Exec(file, e.Args, env)
	runtime.KeepAlive(conn)
	return api.Errorf(api.CodeInvalid, "execute %s as the guest's init: %w", file, err)
}

// startCompanion starts this program once more, with the listening socket as
// descriptor 3. It is forked from this thread and so has its rights.
func startCompanion(listener int) error {
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	_, err = syscall.ForkExec(ownProgram, []string{os.Args[0], ArgServe}, &syscall.ProcAttr{
		Dir:   "/",
		Env:   append(os.Environ(), "PATH="+defaultPath, "HOME=/root", "container=cleave"),
		Files: []uintptr{null.Fd(), null.Fd(), null.Fd(), uintptr(listener)},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	return err
}

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// findProgram finds what execvp(3) would execute.
func findProgram(name string, env []string) (string, error) {
	dirs := []string{""}
	if !strings.Contains(name, "/") {
		search := defaultPath
		for _, kv := range env {
			if p, ok := strings.CutPrefix(kv, "PATH="); ok {
				search = p
			}
		}
		dirs = strings.Split(search, ":")
	}
	var found error
	for _, d := range dirs {
		file := path.Join(d, name)
		err := unix.Access(file, unix.X_OK)
		if err == nil {
			if st, serr := os.Stat(file); serr == nil && !st.Mode().IsRegular() {
				err = unix.EACCES
			}
		}
		if err == nil {
			return file, nil
		}
		if !errors.Is(err, unix.ENOENT) {
			found = err
		}
	}
	if found != nil {
		return "", api.Errorf(api.CodeInvalid, "execute %s as the guest's init: %w", name, found)
	}
	return "", api.Errorf(api.CodeNotFound, "execute %s as the guest's init: no such file in the image", name)
}
