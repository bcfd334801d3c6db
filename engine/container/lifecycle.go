package container

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/keeper"
)

// Signal implements engine.Engine.
func (e *Engine) Signal(ctx context.Context, id string, signal string) error {
	sig, err := parseSignal(signal)
	if err != nil {
		return err
	}
	if sig == unix.SIGSTOP {
		return api.Errorf(api.CodeInvalid, "SIGSTOP would stop the guest's first process and nothing else").
			WithHint("pause the guest")
	}
	k, err := e.client()
	if err != nil {
		return err
	}
	if sig == unix.SIGKILL {
		// The first process takes all others of its PID namespace along; the
		// group has whatever else there might be.
		if err := e.cgroups.Group(id).Kill(); err != nil {
			return err
		}
	}
	err = k.Signal(ctx, id, sig)
	if sig == unix.SIGKILL && api.IsCode(err, api.CodeConflict) {
		return nil // killing the group has ended it already
	}
	return err
}

// parseSignal reads SIGTERM, term, 15 or SIGRTMIN+3. Real-time signals
// count from the C library's 34, which is what programs mean by SIGRTMIN.
func parseSignal(s string) (syscall.Signal, error) {
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if n, err := strconv.Atoi(name); err == nil && n > 0 && n <= 64 {
		return syscall.Signal(n), nil
	}
	for _, r := range []struct {
		name, op string
		base     int
		sign     int
	}{{"RTMIN", "+", 34, 1}, {"RTMAX", "-", 64, -1}} {
		if name == r.name {
			return syscall.Signal(r.base), nil
		}
		if off, ok := strings.CutPrefix(name, r.name+r.op); ok {
			if n, err := strconv.ParseUint(off, 10, 5); err == nil && n <= 64-34 {
				return syscall.Signal(r.base + r.sign*int(n)), nil
			}
		}
	}
	if n := unix.SignalNum("SIG" + name); n > 0 {
		return n, nil
	}
	return 0, api.Errorf(api.CodeInvalid, "%q is no signal", s).WithHint("write a name like SIGTERM or SIGRTMIN+3, or a number")
}

// Pause implements engine.Engine.
func (e *Engine) Pause(ctx context.Context, id string) error {
	g := e.cgroups.Group(id)
	err := g.Freeze(ctx)
	if err != nil {
		err = fmt.Errorf("pause guest %s: %w", id, err)
		if !errors.Is(err, os.ErrNotExist) {
			err = errors.Join(err, g.Thaw(context.WithoutCancel(ctx)))
		}
	}
	return gone(id, err)
}

// Resume implements engine.Engine.
func (e *Engine) Resume(ctx context.Context, id string) error {
	return gone(id, e.cgroups.Group(id).Thaw(ctx))
}

// gone turns a missing cgroup into what it means.
func gone(id string, err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return api.Errorf(api.CodeConflict, "guest %s is not running", id)
	}
	return err
}

// Update implements engine.Engine.
func (e *Engine) Update(ctx context.Context, id string, r api.Resources, root string) error {
	if err := e.checkResources(r); err != nil {
		return err
	}
	rec, err := e.readRecord(id)
	if err != nil {
		return gone(id, err)
	}
	return gone(id, e.cgroups.Group(id).Set(e.limits(r, root, rec.System), false))
}

// Stats implements engine.Engine.
func (e *Engine) Stats(ctx context.Context, id string) (api.Stats, error) {
	s := api.Stats{ID: id, Time: time.Now().UTC()}
	err := e.cgroups.Group(id).Stats(&s)
	return s, gone(id, err)
}

// Agent implements engine.Engine.
func (e *Engine) Agent(ctx context.Context, id string) (net.Conn, error) {
	d, err := os.Open(e.dir(id))
	if err != nil {
		return nil, gone(id, err)
	}
	defer d.Close()
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, "unix", socketPath(d))
	switch {
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, os.ErrNotExist):
		return nil, api.Errorf(api.CodeConflict, "guest %s: its agent doesn't answer: it is not running", id)
	case err != nil:
		return nil, fmt.Errorf("guest %s: connect to its agent: %w", id, err)
	}
	return c, nil
}

// Console implements engine.Engine.
func (e *Engine) Console(ctx context.Context, id string, opts engine.ConsoleOptions) (engine.Console, error) {
	k, err := e.client()
	if err != nil {
		return nil, err
	}
	a, err := k.Attach(ctx, id, keeper.AttachOptions{Stdin: opts.Stdin, Replay: opts.Replay})
	if err != nil {
		return nil, err
	}
	return a, nil
}

// Clean implements engine.Engine. It kills what still lives.
func (e *Engine) Clean(ctx context.Context, id string) error {
	if !idPattern.MatchString(id) {
		return api.Errorf(api.CodeInvalid, "%q is no instance id", id)
	}
	return e.clean(ctx, id)
}

func (e *Engine) clean(ctx context.Context, id string) error {
	ended := e.expect(id)
	if err := e.end(ctx, id); err != nil {
		return fmt.Errorf("end guest %s: %w", id, err)
	}
	// The agent's socket goes first, so that nobody finds half a guest.
	if err := os.Remove(e.dir(id) + "/" + socketName); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("clean guest %s: %w", id, err)
	}
	if err := e.cgroups.Group(id).Remove(ctx); err != nil {
		return fmt.Errorf("clean guest %s: %w", id, err)
	}
	e.images.release(id)
	if err := e.forget(ctx, id, ended); err != nil {
		return fmt.Errorf("clean guest %s: %w", id, err)
	}
	if err := os.RemoveAll(e.dir(id)); err != nil {
		return fmt.Errorf("clean guest %s: %w", id, err)
	}
	return nil
}

// end kills a guest and waits until its last process has gone, which the
// first process's pidfd tells: the kernel lets it end after all others of
// its PID namespace (zap_pid_ns_processes).
func (e *Engine) end(ctx context.Context, id string) error {
	if err := e.cgroups.Group(id).Kill(); err != nil {
		return err
	}
	pid, started := 0, uint64(0)
	if r, err := e.readRecord(id); err == nil {
		pid, started = r.PID, r.StartTime
	} else if k, err := e.client(); err == nil {
		gs, err := k.List(ctx)
		if err != nil {
			return err
		}
		for _, g := range gs {
			if g.ID == id && !g.Exited {
				pid, started = g.PID, g.StartTime
			}
		}
	}
	if pid == 0 {
		return nil
	}
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err == unix.ESRCH {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	// The descriptor holds the process, so that its start time can be
	// checked now and its number not be another's later.
	if now, err := startTime(pid); err != nil || now != started {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
		return err
	}
	return waitReadable(ctx, fd)
}

// waitReadable waits for a descriptor, by the runtime's poller.
func waitReadable(ctx context.Context, fd int) error {
	// A duplicate, since an os.File closes what it wraps.
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(dup), "pidfd")
	defer f.Close()
	stop := context.AfterFunc(ctx, func() { f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	err = conn.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		return n > 0 || err != nil && err != unix.EINTR
	})
	return errors.Join(err, ctx.Err())
}

// Forget implements engine.Engine.
func (e *Engine) Forget(ctx context.Context, id string) error {
	if err := e.Clean(ctx, id); err != nil {
		return err
	}
	if err := os.RemoveAll(e.LogDir(id)); err != nil {
		return fmt.Errorf("remove logs of guest %s: %w", id, err)
	}
	return nil
}
