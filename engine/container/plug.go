package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/internal/nic"
)

var _ engine.Wirer = (*Engine)(nil)

// AttachLink implements engine.Wirer.
func (e *Engine) AttachLink(ctx context.Context, id string, n engine.NIC, attach func(context.Context, int) error) error {
	ns, pid, err := e.netns(id)
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := attach(ctx, pid); err != nil {
		return err
	}
	m := nic.NIC(nicOf(n))
	err = inside(ns, func() error { return nic.Configure([]nic.NIC{m}, netSysctl) })
	if err != nil {
		return errors.Join(fmt.Errorf("guest %s: %w", id, err), e.DetachLink(context.WithoutCancel(ctx), id, n.Name))
	}
	return nil
}

// DetachLink implements engine.Wirer.
func (e *Engine) DetachLink(_ context.Context, id, name string) error {
	ns, _, err := e.netns(id)
	if err != nil {
		return err
	}
	defer ns.Close()
	err = inside(ns, func() error { return nic.Remove(name) })
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("guest %s: %w", id, err)
	}
	return nil
}

// netns opens the network namespace of a running guest's first process.
func (e *Engine) netns(id string) (*os.File, int, error) {
	gone := api.Errorf(api.CodeConflict, "guest %s is not running", id)
	rec, err := e.book.Read(id)
	if err != nil {
		return nil, 0, gone
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", rec.PID))
	if err != nil {
		return nil, 0, gone
	}
	// Looked at afterwards: then it is that process whose namespace this is.
	if !rec.Alive() {
		ns.Close()
		return nil, 0, gone
	}
	return ns, rec.PID, nil
}

// inside runs f on a thread of the network namespace, which ends with it. The
// thread has this process's rights, file system and other namespaces: f may
// touch nothing but the network.
func inside(ns *os.File, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The process's first thread doesn't end, and /proc/self shows its
			// namespaces. As long as this goroutine holds it the next has another.
			done <- inside(ns, f)
			runtime.UnlockOSThread()
			return
		}
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter the guest's network: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// netSysctl sets a parameter of the network namespace of the thread: the
// kernel shows every thread those of its own.
func netSysctl(name, value string) error {
	return os.WriteFile(path.Join("/proc/sys", path.Clean("/"+name)), []byte(value), 0)
}
