package qemu

import (
	"context"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/machine"
)

var _ engine.Grower = (*Engine)(nil)

// GrowRoot implements engine.Grower. QEMU makes the file longer, and tells the
// guest's driver.
func (e *Engine) GrowRoot(ctx context.Context, id string, size api.Bytes) error {
	g, c, _, err := e.guest(ctx, id)
	if err != nil {
		return err
	}
	has, err := c.NodeSize(ctx, machine.RoleRoot)
	if err != nil {
		return machine.Unanswered(id, err)
	}
	if has < int64(size) {
		args := map[string]any{"node-name": machine.RoleRoot, "size": int64(size)}
		if err := c.Execute(ctx, "block_resize", args, nil); err != nil {
			return machine.Unanswered(id, err)
		}
	}
	return e.GrownRoot(ctx, g)
}
