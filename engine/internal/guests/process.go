package guests

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Alive tells whether the recorded process still runs. Its pidfd says so and
// not the state in /proc, which is that of its first thread: a killed process
// whose first thread is a zombie may have others on their way out.
func (r *Record) Alive() bool {
	fd, err := unix.PidfdOpen(r.PID, unix.PIDFD_NONBLOCK)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	if now, err := StartTime(r.PID); err != nil || now != r.StartTime {
		return false
	}
	return !over(fd)
}

// over tells whether the last thread of a pidfd's process is gone.
func over(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(p, 0)
		if err != unix.EINTR {
			return n > 0 || err != nil
		}
	}
}

// StartTime is a process's start in ticks since boot: with the PID it names a
// process for good.
func StartTime(pid int) (uint64, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	return parseStat(string(text))
}

// parseStat reads field 22 of a stat line (proc_pid_stat(5)), the start time.
// The second field is the command in parentheses, and may hold any byte; no
// later field has a parenthesis.
func parseStat(stat string) (started uint64, err error) {
	if i := strings.LastIndexByte(stat, ')'); i >= 0 {
		if f := strings.Fields(stat[i+1:]); len(f) > 19 {
			return strconv.ParseUint(f[19], 10, 64)
		}
	}
	return 0, fmt.Errorf("process status %q has no start time", stat)
}

// End kills a guest's first process and waits until its last process has
// gone, which the first one's pidfd tells: the kernel lets it end after all
// others of its PID namespace (zap_pid_ns_processes).
func (b *Book) End(ctx context.Context, id string) error {
	p, err := b.find(ctx, id)
	if err != nil || p.pid == 0 {
		return err
	}
	fd, err := unix.PidfdOpen(p.pid, unix.PIDFD_NONBLOCK)
	if err == unix.ESRCH {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", p.pid, err)
	}
	defer unix.Close(fd)
	// The descriptor holds the process, so that its start time can be
	// checked now and its number not be another's later.
	if now, err := StartTime(p.pid); err != nil || now != p.started {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
		return err
	}
	return waitReadable(ctx, fd)
}

// find is the first process of a guest, by its record or else the keeper's;
// the zero value if there is none.
func (b *Book) find(ctx context.Context, id string) (process, error) {
	if r, err := b.Read(id); err == nil {
		return r.process(), nil
	}
	k, err := b.Keeper()
	if err != nil {
		return process{}, nil
	}
	if _, err := os.Lstat(b.Dir(id)); errors.Is(err, os.ErrNotExist) {
		return process{}, nil
	}
	gs, err := k.List(ctx)
	if err != nil {
		return process{}, err
	}
	for _, g := range gs {
		if g.ID == id && !g.Exited {
			return process{g.PID, g.StartTime}, nil
		}
	}
	return process{}, nil
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
	err = conn.Read(func(fd uintptr) bool { return over(int(fd)) })
	return errors.Join(err, ctx.Err())
}
