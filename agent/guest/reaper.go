package guest

import (
	"errors"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// reaper starts processes and is the only one that waits for them. PID 1 must
// reap every orphan without taking the status of a process that somebody
// waits for; os.Process.Wait would race with that, so nothing here uses it.
//
// In a process that is not PID 1 only its own children are waited for, each
// by its id: others may use os/exec beside it.
type reaper struct {
	orphans bool     // reap all, as PID 1 must
	cgroup  *os.File // that what is started goes to; nil for ours

	// mu is held while a process is started, so that it can't be reaped
	// before it is known, and while one is signalled, so that its id can't
	// belong to another by then.
	mu       sync.Mutex
	children map[int]*child

	signals chan os.Signal
	loop    sync.WaitGroup
}

// child is a started process.
type child struct {
	reaper *reaper
	pid    int
	ended  bool // reaped; guarded by reaper.mu
	status syscall.WaitStatus
	done   chan struct{} // closed when status is set
}

// newReaper begins to reap; close ends it.
func newReaper(orphans bool) *reaper {
	r := &reaper{
		orphans:  orphans,
		children: make(map[int]*child),
		signals:  make(chan os.Signal, 1), // one stands for any number
	}
	signal.Notify(r.signals, unix.SIGCHLD)
	r.loop.Go(func() {
		r.reap() // whoever ended before we listened
		for range r.signals {
			r.reap()
		}
	})
	return r
}

func (r *reaper) close() {
	signal.Stop(r.signals)
	close(r.signals)
	r.loop.Wait()
}

// start executes path. The process leads its own session and process group,
// unless attr says otherwise.
func (r *reaper) start(path string, argv []string, attr *syscall.ProcAttr) (*child, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cgroup != nil {
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(r.cgroup.Fd())
	}
	// If exec fails, ForkExec itself waits for the process, before we unlock.
	pid, err := syscall.ForkExec(path, argv, attr)
	if err != nil {
		return nil, err
	}
	c := &child{reaper: r, pid: pid, done: make(chan struct{})}
	r.children[pid] = c
	return c, nil
}

func (r *reaper) reap() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.orphans {
		for pid := range r.children {
			r.wait(pid)
		}
		return
	}
	for r.wait(-1) {
	}
}

// wait collects one status, if there is one.
func (r *reaper) wait(pid int) bool {
	var status syscall.WaitStatus
	var err error
	for {
		pid, err = syscall.Wait4(pid, &status, syscall.WNOHANG, nil)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil || pid <= 0 {
		return false
	}
	if c := r.children[pid]; c != nil {
		delete(r.children, pid)
		c.ended, c.status = true, status
		close(c.done)
	}
	return true
}

// exitCode is what a shell makes of the status: 128+n for signal n.
func (c *child) exitCode() int {
	if c.status.Signaled() {
		return 128 + int(c.status.Signal())
	}
	return c.status.ExitStatus()
}

// signal sends sig to the process, or to the whole group that it leads. One
// that has ended gets none.
func (c *child) signal(sig syscall.Signal, group bool) {
	c.reaper.mu.Lock()
	defer c.reaper.mu.Unlock()
	if c.ended {
		return
	}
	pid := c.pid
	if group {
		pid = -pid
	}
	// It fails only for a process that is a zombie, or has become another
	// user's with more rights than ours.
	_ = syscall.Kill(pid, sig)
}
