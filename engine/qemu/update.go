package qemu

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine/machine"
	"github.com/cleave-project/cleave/engine/qemu/qmp"
)

// balloonLimit is how long a guest may take to give memory back.
const balloonLimit = 30 * time.Second

// Update implements machine.Monitor: memory by the balloon, which the machine
// was started with more than, and CPUs where there is room for more. Fewer
// CPUs are a matter of the cgroup.
func (m *monitor) Update(ctx context.Context, g *machine.Guest, r api.Resources) error {
	c, s, err := m.client(ctx, g)
	if err != nil {
		return err
	}
	more, err := newCPUs(ctx, c, g.ID, int(math.Ceil(r.CPUs)))
	if err != nil {
		return machine.Unanswered(g.ID, err)
	}
	undo, err := s.balloon(ctx, c, r.Memory)
	if err != nil {
		return machine.Unanswered(g.ID, err)
	}
	if err := setPace(ctx, c, r); err != nil {
		undo()
		return machine.Unanswered(g.ID, fmt.Errorf("limit its disks: %w", err))
	}
	for _, cpu := range more {
		if err := plugCPU(ctx, c, cpu); err != nil {
			undo()
			return machine.Unanswered(g.ID, fmt.Errorf("add a virtual CPU: %w", err))
		}
	}
	return nil
}

// newCPUs are the places that are to be filled for a machine to have want CPUs.
func newCPUs(ctx context.Context, c *qmp.Client, id string, want int) ([]qmp.CPU, error) {
	have, err := c.CPUCount(ctx)
	if err != nil || want <= have {
		return nil, err
	}
	var free []qmp.CPU
	if places, err := c.CPUs(ctx); err == nil { // a machine without refuses
		for _, p := range places {
			if p.Path == "" {
				free = append(free, p)
			}
		}
	}
	if len(free) < want-have {
		return nil, api.Errorf(api.CodeUnsupported, "guest %s: its machine has %d virtual CPUs, and room for %d more while it runs", id, have, len(free)).
			WithField("spec.resources.cpus").WithHint("a restart gives it more; only systems of their own take them while they run")
	}
	return free[:want-have], nil
}

func plugCPU(ctx context.Context, c *qmp.Client, cpu qmp.CPU) error {
	args := map[string]any{"driver": cpu.Type}
	id := "cpu"
	for _, p := range []string{"socket-id", "die-id", "cluster-id", "core-id", "thread-id"} {
		if v, ok := cpu.Props[p]; ok {
			args[p] = v
			id += fmt.Sprintf("-%v", v)
		}
	}
	args["id"] = id
	return c.Execute(ctx, "device_add", args, nil)
}

// balloon has the guest make do with size bytes; 0 are all that it has. What
// it returns goes back to what was.
func (s *session) balloon(ctx context.Context, c *qmp.Client, size api.Bytes) (undo func(), err error) {
	ram, err := c.Memory(ctx)
	if err != nil {
		return nil, err
	}
	have, err := c.BalloonSize(ctx)
	if err != nil {
		return nil, err
	}
	want := int64(size)
	if want == 0 {
		want = ram
	}
	undo = func() { _ = c.Balloon(context.WithoutCancel(ctx), have) }
	switch {
	case want > ram:
		return nil, api.Errorf(api.CodeUnsupported, "guest %s: its machine was started with %s of memory, and can't be given %s while it runs", s.id, api.Bytes(ram), size).
			WithField("spec.resources.memory").WithHint("a restart gives it more")
	case want < int64(minMemory):
		return nil, api.Errorf(api.CodeInvalid, "guest %s: no system runs in %s of memory", s.id, size).
			WithField("spec.resources.memory").WithHint("give it %s or more", minMemory)
	case want == have:
		return undo, nil
	}
	if err := s.inflate(ctx, c, want); err != nil {
		undo()
		return nil, err
	}
	return undo, nil
}

// inflate waits until the guest has no more than want bytes. The limit of the
// cgroup follows, which would hit the monitor if it came first.
func (s *session) inflate(ctx context.Context, c *qmp.Client, want int64) error {
	changes, stop := s.watch(qmp.EventBalloon)
	defer stop()
	if err := c.Balloon(ctx, want); err != nil {
		return err
	}
	limit := time.NewTimer(balloonLimit)
	defer limit.Stop()
	for {
		// A state and not the event: that may be lost.
		have, err := c.BalloonSize(ctx)
		if err != nil || have <= want {
			return err
		}
		select {
		case <-changes: // at most one a second
		case <-c.Done():
			return c.Err()
		case <-ctx.Done():
			return ctx.Err()
		case <-limit.C:
			return api.Errorf(api.CodeTimeout, "guest %s: after %v it still has %s of memory, and not %s", s.id, balloonLimit, api.Bytes(have), api.Bytes(want)).
				WithField("spec.resources.memory").WithHint("its programs may need what they have, or its system has no driver for the balloon; stop it first")
		}
	}
}
