package control

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// stop ends the guest: politely first, unless an operation says otherwise.
// A forced stop or deletion that comes while it waits is obeyed at once.
func (t *task) stop(ctx context.Context, g *guest) error {
	e, err := t.c.engineFor(t.in.Spec.Kind)
	if err != nil {
		return err
	}
	if g.paused {
		if err := e.Resume(ctx, t.in.ID); err != nil {
			return err
		}
		g.paused = false
	}
	wait, step := t.patience(), "stopping"
	if wait > 0 && !t.forced() {
		step, wait = t.stopping(ctx, wait)
	}
	t.progress(step, 0, 0)
	if wait > 0 && !t.forced() {
		// A guest that has ended meanwhile can't be signalled, and needn't be.
		if err := e.Signal(ctx, t.in.ID, t.stopSignal(ctx)); err != nil && !api.IsCode(err, api.CodeConflict) {
			return err
		}
		if err := t.await(ctx, g, time.Now().Add(wait)); err != nil {
			return err
		}
	}
	if t.c.exit(g) == nil {
		if err := t.kill(ctx, g); err != nil {
			return err
		}
	}
	return t.ended(ctx, g, *t.c.exit(g))
}

// kill ends every process of the guest and waits for it.
func (t *task) kill(ctx context.Context, g *guest) error {
	e, err := t.c.engineFor(t.in.Spec.Kind)
	if err != nil {
		return err
	}
	if err := e.Signal(ctx, t.in.ID, "SIGKILL"); err != nil {
		return err
	}
	select {
	case <-g.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(30 * time.Second):
		return api.Errorf(api.CodeTimeout, "instance %q: its processes did not end within 30 seconds of SIGKILL", t.in.Name).
			WithHint("one of them waits for the kernel, see its state with `ps -eo pid,stat,wchan` on the host")
	}
}

// await waits for the guest's end until a time, or until force is asked for.
func (t *task) await(ctx context.Context, g *guest, until time.Time) error {
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	for {
		select {
		case <-g.ended:
			return nil
		case <-timer.C:
			return nil
		case <-t.wake:
			if t.forced() {
				return nil
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// forced looks anew for an operation that allows no patience.
func (t *task) forced() bool {
	if in := t.c.instances.ByID(t.in.ID); in == nil || in.Deleting != nil {
		return true
	}
	for _, op := range t.c.ops.openFor(t.in.ID) {
		if op.Labels[opForce] == "true" {
			return true
		}
	}
	return false
}

// patience is the time between the stop signal and SIGKILL.
func (t *task) patience() time.Duration {
	for _, op := range t.ops {
		if n, err := strconv.Atoi(op.Labels[opTimeout]); err == nil {
			return time.Duration(n) * time.Second
		}
	}
	switch {
	case t.in.Spec.StopSeconds != nil:
		return time.Duration(*t.in.Spec.StopSeconds) * time.Second
	case t.in.Status.System:
		return defaultSystemStop * time.Second
	}
	return defaultStop * time.Second
}

// pause freezes or thaws the guest.
func (t *task) pause(ctx context.Context, g *guest, freeze bool) error {
	e, err := t.c.engineFor(t.in.Spec.Kind)
	if err != nil {
		return err
	}
	phase, event, act := api.PhaseRunning, "instance.resumed", e.Resume
	if freeze {
		phase, event, act = api.PhasePaused, "instance.paused", e.Pause
	}
	if err := act(ctx, t.in.ID); err != nil {
		return err
	}
	g.paused = freeze
	running := t.in.Status.Running
	if !freeze {
		running = t.resumed(ctx, g)
	}
	t.c.emit(event, &t.in.Meta, "", nil)
	return t.settle(func(in *api.Instance) { in.Status.Phase, in.Status.Running = phase, running })
}

// stopSignal is what a polite stop sends.
func (t *task) stopSignal(ctx context.Context) string {
	if s := t.in.Spec.StopSignal; s != "" {
		return signalName(s)
	}
	if img, err := t.c.images.Get(ctx, t.in.Status.Digest); err == nil && img.Config.StopSignal != "" {
		return signalName(img.Config.StopSignal)
	}
	if t.in.Status.System {
		return "SIGRTMIN+3" // systemd.special(7): halt.target; other inits say theirs in the image
	}
	return "SIGTERM"
}

// signalName accepts what images carry: SIGTERM, TERM or 15.
func signalName(s string) string {
	s = strings.ToUpper(s)
	if n, err := strconv.Atoi(s); err == nil {
		return signalOf(syscall.Signal(n))
	}
	if !strings.HasPrefix(s, "SIG") {
		return "SIG" + s
	}
	return s
}

func signalOf(s syscall.Signal) string {
	if s >= 34 && s <= 64 { // glibc's SIGRTMIN, signal(7)
		return fmt.Sprintf("SIGRTMIN+%d", int(s)-34)
	}
	return unix.SignalName(s)
}
