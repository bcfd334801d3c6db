package vmm

import (
	"context"
	"errors"
	"os"
	"slices"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/machine"
	"github.com/cleave-project/cleave/vmm/control"
)

// Bounds of waiting.
const (
	unplugLimit = 30 * time.Second // for a guest to let go of a device
	undoTime    = time.Minute
)

// undo undoes a step when *err says that a later one failed.
func undo(err *error, step func(context.Context) error) {
	if *err != nil {
		ctx, cancel := context.WithTimeout(context.Background(), undoTime)
		defer cancel()
		*err = errors.Join(*err, step(ctx))
	}
}

// AttachDisk implements engine.Plugger.
func (e *Engine) AttachDisk(ctx context.Context, id string, d engine.Disk) error {
	if d.CDROM {
		return noDrive(id)
	}
	g, err := e.Guest(id)
	if err != nil {
		return err
	}
	f, err := e.OpenDisk(ctx, id, d)
	if err != nil {
		return err
	}
	defer f.Close()
	var record *os.File
	if d.Size > 0 && !d.ReadOnly { // that of a volume, in a directory of its own
		if record, err = openRecord(f); err != nil {
			return err
		}
		defer record.Close()
	}
	err = plug(ctx, g, diskID(d.ID), "disk "+d.ID, func(ctx context.Context, c *control.Client) error {
		return c.AddDisk(ctx, control.Disk{Name: plugged + diskID(d.ID), Serial: d.ID, ReadOnly: d.ReadOnly}, f, record)
	})
	if err != nil {
		return err
	}
	err = e.MountDisk(ctx, g, d)
	undo(&err, func(ctx context.Context) error { return unplug(ctx, g, diskID(d.ID), "disk "+d.ID) })
	return err
}

// DetachDisk implements engine.Plugger.
func (e *Engine) DetachDisk(ctx context.Context, id, disk string) error {
	g, err := e.Guest(id)
	if err != nil {
		return err
	}
	if err := canUnplug(ctx, g, diskID(disk), "disk "+disk); err != nil {
		return err
	}
	again, err := e.UnmountDisk(ctx, g, disk)
	if err != nil {
		return err
	}
	err = unplug(ctx, g, diskID(disk), "disk "+disk)
	undo(&err, again)
	return err
}

// InsertMedium implements engine.Plugger.
func (e *Engine) InsertMedium(_ context.Context, id, _ string) error { return noDrive(id) }

func noDrive(id string) error {
	return api.Errorf(api.CodeUnsupported, "guest %s has no CD drive", id).WithHint("systems of their own have one, guests made of images don't")
}

// AttachNIC implements engine.Plugger.
func (e *Engine) AttachNIC(ctx context.Context, id string, n engine.NIC, tap *os.File) error {
	g, err := e.Guest(id)
	if err != nil {
		return err
	}
	err = plug(ctx, g, nicID(n.Name), "port "+n.Name, func(ctx context.Context, c *control.Client) error {
		return c.AddNet(ctx, control.Net{Name: plugged + nicID(n.Name), MAC: n.MAC.String()}, []*os.File{tap})
	})
	if err != nil {
		return err
	}
	err = e.ConfigureNIC(ctx, g, n)
	undo(&err, func(ctx context.Context) error { return unplug(ctx, g, nicID(n.Name), "port "+n.Name) })
	return err
}

// DetachNIC implements engine.Plugger.
func (e *Engine) DetachNIC(ctx context.Context, id, name string) error {
	g, err := e.Guest(id)
	if err != nil {
		return err
	}
	if err := unplug(ctx, g, nicID(name), "port "+name); err != nil {
		return err
	}
	return e.ForgetNIC(g, name)
}

// plug adds a device that the machine doesn't have.
func plug(ctx context.Context, g *machine.Guest, device, what string, add func(context.Context, *control.Client) error) error {
	return do(ctx, g, func(ctx context.Context, c *control.Client) error {
		s, err := c.Status(ctx)
		if err != nil {
			return err
		}
		if slices.Contains(s.Devices, device) || slices.Contains(s.Devices, plugged+device) {
			return api.Errorf(api.CodeExists, "guest %s has a %s already", g.ID, what)
		}
		if err := add(ctx, c); err != nil {
			return api.Errorf(api.CodeNoResources, "guest %s: plug %s: %w", g.ID, what, err)
		}
		return nil
	})
}

// canUnplug refuses what was not plugged.
func canUnplug(ctx context.Context, g *machine.Guest, device, what string) error {
	return do(ctx, g, func(ctx context.Context, c *control.Client) error {
		s, err := c.Status(ctx)
		switch {
		case err != nil:
			return err
		case slices.Contains(s.Devices, device):
			return api.Errorf(api.CodeUnsupported, "guest %s: its %s was there at the start, and stays while it runs", g.ID, what).WithHint("stop the guest first")
		case !slices.Contains(s.Devices, plugged+device):
			return api.Errorf(api.CodeNotFound, "guest %s has no %s", g.ID, what)
		}
		return nil
	})
}

// unplug takes a device away, when the guest lets go of it.
func unplug(ctx context.Context, g *machine.Guest, device, what string) error {
	if err := canUnplug(ctx, g, device, what); err != nil {
		return err
	}
	err := do(ctx, g, func(ctx context.Context, c *control.Client) error {
		return c.Remove(ctx, control.Remove{Name: plugged + device, Timeout: unplugLimit})
	})
	if err != nil && ctx.Err() == nil && canUnplug(ctx, g, device, what) == nil {
		return api.Errorf(api.CodeTimeout, "guest %s has not let go of its %s for %v: %w", g.ID, what, unplugLimit, err).
			WithHint("it may be in use there, or the system may not be up yet; try again, or stop the guest")
	}
	return err
}
