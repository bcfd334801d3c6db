package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
)

// A machine's memory is in one of these files, in its directory. It may be
// used once: what it knows of the disks is true only until the guest writes to
// them again. So the file changes its name before the guest goes on, and one
// that is found under the second name may not be used any more.
const (
	memorySaving = "memory.new"
	memorySaved  = "memory"
	memoryTaken  = "memory.taken"
)

// canSave refuses to save what can't be saved.
func (c *Controller) canSave(ctx context.Context, in *api.Instance) error {
	w, caps, err := c.usable(ctx, in.Spec.Kind)
	if err != nil {
		return err
	}
	if _, ok := w.Engine.(engine.Saver); ok && caps.Save {
		return nil
	}
	return api.Errorf(api.CodeUnsupported, "kind %s can't keep a guest's memory", w.Kind()).
		WithHint("%s", c.kindsThat(ctx, func(caps engine.Capabilities) bool { return caps.Save }))
}

// saving finds the operation that wants the guest stopped with its memory
// kept.
func (t *task) saving() bool {
	op := t.has("instance.stop")
	return op != nil && op.Labels[opSave] == "true"
}

// save stops the guest with its memory kept. When that fails it runs on.
func (t *task) save(ctx context.Context, g *guest) error {
	e, err := t.c.engineFor(t.in.Spec.Kind)
	if err != nil {
		return err
	}
	s, ok := e.(engine.Saver)
	if !ok {
		return t.c.canSave(ctx, t.in)
	}
	dir := t.c.machineDir(t.in.ID)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("directory for the memory: %w", err)
	}
	t.progress("saving the memory", 0, 0)
	if err := s.Save(ctx, t.in.ID, filepath.Join(dir, memorySaving)); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(dir, memorySaving), filepath.Join(dir, memorySaved)); err != nil {
		return fmt.Errorf("saved memory: %w", err)
	}
	select {
	case <-g.ended:
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(undoTime):
		if err := t.kill(ctx, g); err != nil {
			return err
		}
	}
	return t.ended(ctx, g, *t.c.exit(g))
}

// isSaved tells whether the guest that has just ended left its memory.
func (t *task) isSaved() bool {
	_, err := os.Stat(filepath.Join(t.c.machineDir(t.in.ID), memorySaved))
	return t.saving() && err == nil
}

// goesOn tells whether the next start goes on from saved memory.
func (t *task) goesOn() bool {
	op := t.user()
	return t.in.Status.Saved && (op == nil || op.Labels[opFresh] != "true")
}

// restore has the start go on from saved memory, if there is some and nobody
// wants to start without. failed is for a start that failed: it puts the
// memory back.
func (t *task) restore(m *engine.Machine) (failed func(error) error, err error) {
	asItIs := func(err error) error { return err }
	if !t.goesOn() || m == nil {
		return asItIs, nil
	}
	dir := t.c.machineDir(t.in.ID)
	saved, taken := filepath.Join(dir, memorySaved), filepath.Join(dir, memoryTaken)
	if err := os.Rename(saved, taken); errors.Is(err, fs.ErrNotExist) {
		return nil, api.Errorf(api.CodeConflict, "the saved memory of %q was taken by a start that was cut short", t.in.Name).
			WithHint("`cleave start --fresh %s` starts it anew", t.in.Name)
	} else if err != nil {
		return nil, fmt.Errorf("saved memory: %w", err)
	}
	m.Restore = taken
	return func(err error) error {
		if rerr := os.Rename(taken, saved); rerr != nil {
			t.c.log.Error("saved memory could not be put back", "instance", t.in.Name, "error", rerr)
		}
		return api.Errorf(api.AsError(err).Code, "going on from saved memory: %w", err).
			WithHint("it is kept, try again; `cleave start --fresh %s` drops it and starts anew", t.in.Name)
	}, nil
}

// forgetMemory removes saved memory when a guest runs without it or on it.
func (t *task) forgetMemory() {
	for _, name := range []string{memorySaving, memorySaved, memoryTaken} {
		if err := os.Remove(filepath.Join(t.c.machineDir(t.in.ID), name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.c.log.Error("saved memory could not be removed", "instance", t.in.Name, "error", err)
		}
	}
}
