package setup

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// ExecInit becomes the guest's own init. Before, it starts companion as a
// child, with the listener as descriptor 3: the agent, which the init adopts
// with all else. ExecInit returns only with an error, and has reported it.
//
// The host takes the end of the connection, which executing brings, for
// success.
func (e *Entry) ExecInit(companion []string, l *net.UnixListener) error {
	err := e.execInit(companion, l)
	e.Report(err)
	return err
}

func (e *Entry) execInit(companion []string, l *net.UnixListener) error {
	env := append([]string{"container=cleave"}, e.Env...)
	file, err := findProgram(e.Args[0], env)
	if err != nil {
		return err
	}
	if err := startCompanion(companion, l); err != nil {
		return fmt.Errorf("start the agent beside %s: %w", e.Args[0], err)
	}
	if err := (Report{Started: true}).send(e.conn); err != nil {
		return err
	}
	err = syscall.Exec(file, e.Args, env)
	return api.Errorf(api.CodeInvalid, "execute %s as the guest's init: %w", file, err)
}

// startCompanion executes this program again. Its path is procfs's own link:
// /proc is the procfs that setup mounted, and nothing of the image has run
// that could have covered it.
func startCompanion(args []string, l *net.UnixListener) error {
	lf, err := l.File()
	if err != nil {
		return err
	}
	defer lf.Close()
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	p, err := os.StartProcess("/proc/self/exe", args, &os.ProcAttr{
		Dir:   "/",
		Env:   append(os.Environ(), "PATH="+defaultPath, "HOME=/root", "container=cleave"),
		Files: []*os.File{null, null, null, lf},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return err
	}
	return p.Release()
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
