// Package cell runs a program of the host on hostile input, shut in: alone in
// its namespaces, as a user that owns nothing, without network, without
// privileges and without ways to new ones, in a root that holds the host's
// programs and libraries read-only and the files that it was given. Memory,
// time and the size of what it writes are limited.
//
// The calling process must be root. Programs are started rarely and end soon:
// a process that must live on belongs to the keeper.
package cell

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// user is the id that programs run under: it owns nothing, and no guest has
// it.
const user = 0x7ffe_ce11

// Command is a program with what it may touch.
type Command struct {
	Args []string // the first one is looked up in PATH
	// Files appear in the root by name, without directories. The program may
	// write to those in Writable. While it runs they belong to its user, so
	// they should be made for it.
	Files    map[string]*os.File
	Writable map[string]bool
	// Dir is any directory. In the program's sight the root is mounted there;
	// nothing is written to it.
	Dir string

	Memory   uint64        // bytes of address space
	FileSize uint64        // bytes of the longest file
	CPU      time.Duration // of all its threads
	// Output is given what it writes to its standard output; it must not
	// block for long. Nil drops it.
	Output io.Writer
}

// Failure is the end of a program that wasn't well.
type Failure struct {
	Program string
	State   *os.ProcessState
	Stderr  string // its last words
}

// Error is one line.
func (f *Failure) Error() string {
	words := strings.Join(strings.Fields(f.Stderr), " ")
	if words == "" {
		words = "no word of why"
	}
	return fmt.Sprintf("%s: %s: %s", f.Program, f.State, words)
}

// Signal is what killed the program, or 0.
func (f *Failure) Signal() syscall.Signal {
	if ws, ok := f.State.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return ws.Signal()
	}
	return 0
}

// Run runs the program to its end, or kills it when ctx ends. The error is a
// *Failure if it ran.
func Run(ctx context.Context, c Command) (err error) {
	path, err := exec.LookPath(c.Args[0])
	if err != nil {
		return err
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return err
	}
	for _, f := range c.Files {
		st, err := f.Stat()
		if err != nil {
			return err
		}
		was := st.Sys().(*syscall.Stat_t)
		if err := f.Chown(user, user); err != nil {
			return fmt.Errorf("give %s to the cell: %w", f.Name(), err)
		}
		defer func() { err = errors.Join(err, f.Chown(int(was.Uid), int(was.Gid))) }()
	}
	run := &run{Command: c, path: path}
	defer run.close()
	if err := run.open(); err != nil {
		return err
	}
	done := make(chan error, 1)
	// The thread is in namespaces of its own afterwards: it stays locked, and
	// ends with the goroutine.
	go func() {
		runtime.LockOSThread()
		done <- run.run(ctx)
	}()
	out := make(chan struct{})
	go func() {
		defer close(out)
		w := c.Output
		if w == nil {
			w = io.Discard
		}
		if _, err := io.Copy(w, run.stdout[0]); err != nil {
			_, _ = io.Copy(io.Discard, run.stdout[0])
		}
	}()
	words := make(chan string, 1)
	go func() {
		var b bytes.Buffer
		_, _ = io.Copy(&b, io.LimitReader(run.stderr[0], 4096))
		_, _ = io.Copy(io.Discard, run.stderr[0])
		words <- b.String()
	}()
	err = <-done
	// The program is the init of its PID namespace: nothing that it started
	// outlives it, and with our ends closed the pipes end.
	run.stdout[1].Close()
	run.stderr[1].Close()
	<-out
	text := <-words
	if f, ok := errors.AsType[*Failure](err); ok {
		f.Stderr = text
		if ctx.Err() != nil {
			return errors.Join(context.Cause(ctx), f)
		}
	}
	return err
}

// run is a Command under way.
type run struct {
	Command
	path   string
	mounts []mount // detached, to be put into the root
	null   *os.File
	stdout [2]*os.File
	stderr [2]*os.File
}

func (r *run) open() (err error) {
	if r.null, err = os.OpenFile(os.DevNull, os.O_RDWR, 0); err != nil {
		return err
	}
	for _, p := range []*[2]*os.File{&r.stdout, &r.stderr} {
		if p[0], p[1], err = os.Pipe(); err != nil {
			return err
		}
	}
	return r.openMounts()
}

func (r *run) close() {
	for _, f := range []*os.File{r.null, r.stdout[0], r.stdout[1], r.stderr[0], r.stderr[1]} {
		if f != nil {
			f.Close()
		}
	}
	for _, m := range r.mounts {
		unix.Close(m.fd)
	}
}

// run executes the program on this thread, which is of no use afterwards.
func (r *run) run(ctx context.Context) error {
	if err := r.enter(); err != nil {
		return fmt.Errorf("build a cell: %w", err)
	}
	// Inherited by what the thread starts, as its namespaces are.
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("build a cell: no_new_privs: %w", err)
	}
	p, err := os.StartProcess(r.path, r.Args, &os.ProcAttr{
		Dir: "/", Env: []string{"LC_ALL=C", "PATH=/usr/bin:/bin", "HOME=/"},
		Files: []*os.File{r.null, r.stdout[1], r.stderr[1]},
		Sys: &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
			// A user namespace also lets us limit the program where the host
			// took CAP_SYS_RESOURCE from us.
			UidMappings:                []syscall.SysProcIDMap{{ContainerID: user, HostID: user, Size: 1}},
			GidMappings:                []syscall.SysProcIDMap{{ContainerID: user, HostID: user, Size: 1}},
			GidMappingsEnableSetgroups: true, // to be in none
			Credential:                 &syscall.Credential{Uid: user, Gid: user},
			Pdeathsig:                  syscall.SIGKILL, // of this thread, and so of the daemon
			Ptrace:                     true,            // it stops before its first instruction
			Setsid:                     true,
		},
	})
	if err != nil {
		return fmt.Errorf("start %s in a cell: %w", r.Args[0], err)
	}
	stop := context.AfterFunc(ctx, func() { _ = p.Kill() })
	defer stop()
	if err := r.release(p.Pid); err != nil {
		_ = p.Kill()
		_, _ = p.Wait()
		return errors.Join(fmt.Errorf("limit %s: %w", r.Args[0], err), context.Cause(ctx))
	}
	state, err := p.Wait()
	if err != nil {
		return err
	}
	if !state.Success() {
		return &Failure{Program: r.Args[0], State: state}
	}
	return nil
}

// release limits the stopped program, and lets it go.
func (r *run) release(pid int) error {
	var ws unix.WaitStatus
	for {
		if _, err := unix.Wait4(pid, &ws, unix.WUNTRACED, nil); !errors.Is(err, unix.EINTR) {
			if err != nil {
				return err
			}
			break
		}
	}
	if !ws.Stopped() {
		return fmt.Errorf("it ended before it began (status %#x)", uint32(ws))
	}
	for _, l := range []struct {
		resource int
		value    uint64
	}{
		{unix.RLIMIT_AS, r.Memory},
		{unix.RLIMIT_FSIZE, r.FileSize},
		{unix.RLIMIT_CPU, max(uint64(r.CPU/time.Second), 1)},
		{unix.RLIMIT_NOFILE, 64},
		{unix.RLIMIT_CORE, 0},
		{unix.RLIMIT_MEMLOCK, 0},
	} {
		if err := unix.Prlimit(pid, l.resource, &unix.Rlimit{Cur: l.value, Max: l.value}, nil); err != nil {
			return fmt.Errorf("prlimit: %w", err)
		}
	}
	// It was there for the user namespace's maps to be written.
	if err := unix.Unmount("/proc", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount /proc: %w", err)
	}
	return unix.PtraceDetach(pid)
}
