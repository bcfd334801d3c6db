package vmm

import (
	"context"
	"math"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine/machine"
	"github.com/cleave-project/cleave/vmm/control"
)

// balloonLimit is how long a guest may take to give memory back. The limit of
// the cgroup follows, which would hit the monitor if it came first.
const balloonLimit = 30 * time.Second

// Update implements machine.Monitor: memory by the balloon, which the machine
// was started with more than. Fewer CPUs are a matter of the cgroup.
func (*monitor) Update(ctx context.Context, g *machine.Guest, r api.Resources) error {
	return do(ctx, g, func(ctx context.Context, c *control.Client) error {
		s, err := c.Status(ctx)
		if err != nil {
			return err
		}
		if want := int(math.Ceil(r.CPUs)); want > s.CPUs {
			return api.Errorf(api.CodeUnsupported, "guest %s: its machine has %d virtual CPUs, and room for no more while it runs", g.ID, s.CPUs).
				WithField("spec.resources.cpus").WithHint("a restart gives it more")
		}
		want := uint64(r.Memory)
		if want == 0 {
			want = s.Memory
		}
		if want < uint64(minMemory) {
			return api.Errorf(api.CodeInvalid, "guest %s: no system runs in %s of memory", g.ID, r.Memory).
				WithField("spec.resources.memory").WithHint("give it %s or more", minMemory)
		}
		if err := c.SetMemory(ctx, control.SetMemory{Bytes: want, Wait: balloonLimit}); err != nil {
			return api.Errorf(api.CodeTimeout, "guest %s: %w", g.ID, err).WithField("spec.resources.memory").
				WithHint("its programs may need what they have; stop it first")
		}
		return nil
	})
}

// GrowRoot implements engine.Grower.
func (e *Engine) GrowRoot(ctx context.Context, id string, size api.Bytes) error {
	g, err := e.Guest(id)
	if err != nil {
		return err
	}
	err = do(ctx, g, func(ctx context.Context, c *control.Client) error {
		return c.ResizeDisk(ctx, control.ResizeDisk{Name: diskID(machine.RoleRoot), Bytes: uint64(size)})
	})
	if err != nil {
		return err
	}
	return e.GrownRoot(ctx, g)
}
