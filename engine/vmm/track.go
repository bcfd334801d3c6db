package vmm

import (
	"context"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/vmm/control"
)

var _ engine.Tracker = (*Engine)(nil)

// recordSuffix makes of a disk's name that of the file beside it in which
// cleave-vmm keeps what is known of its changes. It is empty for most.
const recordSuffix = ".changes"

func openRecord(disk *os.File) (*os.File, error) {
	f, err := os.OpenFile(disk.Name()+recordSuffix, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the record of what is changed of a disk: %w", err)
	}
	return f, nil
}

// tracked calls f with the name that the monitor of a running guest has for one
// of its disks.
func (e *Engine) tracked(ctx context.Context, id, disk string, f func(context.Context, *control.Client, string) error) error {
	g, err := e.Guest(id)
	if err != nil {
		return err
	}
	return do(ctx, g, func(ctx context.Context, c *control.Client) error {
		s, err := c.Status(ctx)
		if err != nil {
			return err
		}
		for _, name := range []string{diskID(disk), plugged + diskID(disk)} {
			if slices.Contains(s.Devices, name) {
				return f(ctx, c, name)
			}
		}
		return api.Errorf(api.CodeNotFound, "guest %s has no disk %s", id, disk)
	})
}

// MarkDisk implements engine.Tracker.
func (e *Engine) MarkDisk(ctx context.Context, id, disk string) (mark string, err error) {
	return mark, e.tracked(ctx, id, disk, func(ctx context.Context, c *control.Client, name string) error {
		made, err := c.MarkDisk(ctx, control.DiskMark{Name: name})
		if err != nil {
			return api.Errorf(api.CodeNoResources, "guest %s: %w", id, err).WithHint("a disk that is only read has none, and others have a bounded number of them")
		}
		mark = made.Mark
		return nil
	})
}

// ChangedSince implements engine.Tracker.
func (e *Engine) ChangedSince(ctx context.Context, id, disk, mark string) (out engine.Changes, err error) {
	return out, e.tracked(ctx, id, disk, func(ctx context.Context, c *control.Client, name string) error {
		changed, err := control.AllChanged(ctx, c, control.DiskMark{Name: name, Mark: mark})
		if err != nil {
			return fmt.Errorf("guest %s: %w", id, err)
		}
		out = engine.Changes{Size: changed.Size, Lost: changed.Lost}
		for _, r := range changed.Ranges {
			out.Ranges = append(out.Ranges, engine.Range{Offset: r[0], Size: r[1]})
		}
		return nil
	})
}

// ForgetMark implements engine.Tracker.
func (e *Engine) ForgetMark(ctx context.Context, id, disk, mark string) error {
	return e.tracked(ctx, id, disk, func(ctx context.Context, c *control.Client, name string) error {
		return c.ForgetMark(ctx, control.DiskMark{Name: name, Mark: mark})
	})
}
