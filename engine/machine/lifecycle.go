package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/agent"
	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/internal/guests"
	"github.com/cleave-project/cleave/engine/internal/validate"
)

// powerOffSignal is what a system's init is stopped by: SIGRTMIN+3, which is
// systemd's for halt. A machine is to be off afterwards, and the agent knows
// what its init understands.
const powerOffSignal = 34 + 3

// Signal implements engine.Engine.
func (e *Engine) Signal(ctx context.Context, id string, signal string) error {
	sig, err := guests.ParseSignal(signal)
	if err != nil {
		return err
	}
	if sig == unix.SIGSTOP {
		return api.Errorf(api.CodeInvalid, "SIGSTOP would stop the guest's first process and nothing else").
			WithHint("pause the guest")
	}
	g, rec, err := e.find(id)
	if err != nil {
		return err
	}
	switch {
	case sig == unix.SIGKILL:
		return e.kill(ctx, id)
	case g.Firmware:
		return e.shutDown(ctx, g)
	case g.System && sig == powerOffSignal, rec.Machine.Maintenance:
		return e.ask(ctx, id, func(c *agent.Client) error { return c.PowerOff(ctx, false) })
	}
	return e.ask(ctx, id, func(c *agent.Client) error { return c.SignalEntry(ctx, signal) })
}

// kill ends the monitor, whatever the guest does.
func (e *Engine) kill(ctx context.Context, id string) error {
	if err := e.markKilled(id); err != nil {
		return err
	}
	if err := e.cgroups.Group(id).Kill(); err != nil {
		return err
	}
	k, err := e.book.Keeper()
	if err != nil {
		return err
	}
	if err = k.Signal(ctx, id, unix.SIGKILL); api.IsCode(err, api.CodeConflict) {
		return nil // killing the group has ended it already
	}
	return err
}

// shutDown asks a system of its own to end: by our agent if it has one and it
// answers, else by its power button.
func (e *Engine) shutDown(ctx context.Context, g *Guest) error {
	if e.answers(g.ID) {
		short, cancel := context.WithTimeout(ctx, strangerTime)
		defer cancel()
		if err := e.ask(short, g.ID, func(c *agent.Client) error { return c.PowerOff(short, false) }); err == nil {
			return nil
		}
	}
	return e.monitor.PowerButton(ctx, g)
}

// Pause implements engine.Engine.
func (e *Engine) Pause(ctx context.Context, id string) error {
	g, err := e.Guest(id)
	if err != nil {
		return err
	}
	if err = e.monitor.Pause(ctx, g); !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	group := e.cgroups.Group(id)
	if err = group.Freeze(ctx); err != nil {
		err = fmt.Errorf("pause guest %s: %w", id, err)
		if !errors.Is(err, os.ErrNotExist) {
			err = errors.Join(err, group.Thaw(context.WithoutCancel(ctx)))
		}
	}
	return err
}

// Resume implements engine.Engine. The guest's clock stood still; where its
// agent answers it is set.
func (e *Engine) Resume(ctx context.Context, id string) error {
	g, err := e.Guest(id)
	if err != nil {
		return err
	}
	if err = e.monitor.Resume(ctx, g); errors.Is(err, errors.ErrUnsupported) {
		err = e.cgroups.Group(id).Thaw(ctx)
	}
	if err == nil && (!g.Firmware || e.answers(id)) {
		e.syncClock(ctx, id)
	}
	return err
}

// Update implements engine.Engine.
func (e *Engine) Update(ctx context.Context, id string, r api.Resources, root string) error {
	if err := validate.Resources(r, leastMemory); err != nil {
		return err
	}
	g, rec, err := e.find(id)
	if err != nil {
		return err
	}
	if most := api.Bytes(rec.Machine.Memory); r.Memory > most {
		return api.Errorf(api.CodeConflict, "guest %s was started with %s of memory, and can't have %s while it runs", id, most, r.Memory).
			WithField("spec.resources.memory").WithHint("restart it to give it more")
	}
	if err := e.canPace(rec, r); err != nil {
		return err
	}
	if err := e.monitor.Update(ctx, g, r); err != nil {
		return err
	}
	if err := e.cgroups.Group(id).Set(limits(r, rec, root), false); err != nil {
		return err
	}
	rec.Machine.Limit = int64(r.Memory)
	return e.book.Write(rec)
}

// metricsTime is how long a guest may take to tell how it fares. One that
// doesn't is described by what its monitor takes.
const metricsTime = 300 * time.Millisecond

// Stats implements engine.Engine.
func (e *Engine) Stats(ctx context.Context, id string) (api.Stats, error) {
	s := api.Stats{ID: id, Time: time.Now().UTC()}
	g, rec, err := e.find(id)
	if err != nil {
		return s, err
	}
	if err := e.cgroups.Group(id).Stats(&s); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			err = notRunning(id)
		}
		return s, err
	}
	s.MemoryLimit = api.Bytes(rec.Machine.Limit)
	if g.Firmware && !e.answers(id) {
		return s, nil
	}
	short, cancel := context.WithTimeout(ctx, metricsTime)
	defer cancel()
	_ = e.ask(short, id, func(c *agent.Client) error {
		m, err := c.Metrics(short)
		if err == nil && m.MemoryTotal >= m.MemoryAvailable && m.MemoryTotal <= uint64(rec.Machine.Memory) {
			s.Memory, s.PIDs = api.Bytes(m.MemoryTotal-m.MemoryAvailable), int64(m.Tasks)
		}
		return err
	})
	return s, nil
}

// Inspect implements engine.Inspector.
func (e *Engine) Inspect(ctx context.Context, id string) (engine.Vitals, error) {
	g, err := e.Guest(id)
	if err != nil {
		return engine.Vitals{}, err
	}
	var v engine.Vitals
	if t, ok := e.monitor.(Teller); ok {
		v = t.Tell(g)
	}
	if !g.Firmware {
		if s, err := readStatus(g.Dir); err == nil {
			v.Reboots = max(0, s.Boots-1)
		}
	}
	if e.answers(id) {
		v.Agent = "cleave"
	}
	return v, nil
}

// Clean implements engine.Engine. It kills what still lives.
func (e *Engine) Clean(ctx context.Context, id string) error {
	if !guests.IDPattern.MatchString(id) {
		return api.Errorf(api.CodeInvalid, "%q is no instance id", id)
	}
	// The directory is made first and removed last: without it there is
	// nothing, or a guest of another engine.
	if !exists(e.book.Dir(id)) {
		return nil
	}
	if r, err := e.book.Read(id); err != nil || r.Alive() {
		if err := e.markKilled(id); err != nil {
			return fmt.Errorf("end guest %s: %w", id, err)
		}
	}
	ended := e.book.Expect(id)
	err := e.cgroups.Group(id).Kill()
	if err == nil {
		err = e.book.End(ctx, id)
	}
	if err != nil {
		return fmt.Errorf("end guest %s: %w", id, err)
	}
	e.drop(id)
	if err := e.cgroups.Group(id).Remove(ctx); err != nil {
		return fmt.Errorf("clean guest %s: %w", id, err)
	}
	if err := e.book.Forget(ctx, id, ended); err != nil {
		return fmt.Errorf("clean guest %s: %w", id, err)
	}
	if err := os.RemoveAll(e.book.Dir(id)); err != nil {
		return fmt.Errorf("clean guest %s: %w", id, err)
	}
	return nil
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
