package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine/machine"
	"github.com/cleave-project/cleave/engine/qemu/qmp"
)

// Save implements engine.Saver.
func (e *Engine) Save(ctx context.Context, id, path string) (err error) {
	_, c, s, err := e.guest(ctx, id)
	if err != nil {
		return err
	}
	devices, err := c.Devices(ctx)
	if err != nil {
		return machine.Unanswered(id, err)
	}
	for d := range devices {
		if name, ok := strings.CutPrefix(d, plugged); ok {
			return api.Errorf(api.CodeUnsupported, "guest %s: its memory can't be saved, since %s was added while it ran", id, name).
				WithHint("detach it, or restart the guest once")
		}
	}
	part := path + ".part"
	f, err := os.OpenFile(part, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("save the memory of guest %s: %w", id, err)
	}
	defer f.Close()
	if err := s.save(ctx, c, f, path); err != nil {
		_ = os.Remove(part)
		_ = os.Remove(path)
		if full(err) {
			return api.Errorf(api.CodeNoSpace, "save the memory of guest %s in %s: %w", id, filepath.Dir(path), err).
				WithHint("free space there; the guest runs on")
		}
		return machine.Unanswered(id, fmt.Errorf("save the memory: %w", err))
	}
	// It is in the file: from here on the guest must not run any more.
	if err := c.Quit(ctx); err != nil {
		return machine.Unanswered(id, err)
	}
	<-c.Done()
	return nil
}

// full tells whether a disk is.
func full(err error) bool {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return true
	}
	text := strings.ToLower(err.Error()) // as QEMU tells it
	return strings.Contains(text, unix.ENOSPC.Error()) || strings.Contains(text, unix.EDQUOT.Error())
}

// save has the guest stand still with its memory in f, which gets its name
// when it is on the disk. When that fails the guest runs on.
func (s *session) save(ctx context.Context, c *qmp.Client, f *os.File, path string) (err error) {
	before, err := c.Status(ctx)
	if err != nil {
		return err
	}
	if err := c.Stop(ctx); err != nil {
		return err
	}
	defer undo(&err, func(ctx context.Context) error {
		if before == qmp.StateRunning {
			return c.Cont(ctx)
		}
		return nil
	})
	if err := migrationEvents(ctx, c); err != nil {
		return err
	}
	// All there is, since nothing else wants the CPUs' time: the guest waits.
	if err := c.Execute(ctx, "migrate-set-parameters", map[string]any{"max-bandwidth": int64(1) << 40}, nil); err != nil {
		return err
	}
	const name = "memory"
	if err := c.GetFile(ctx, name, f); err != nil {
		return err
	}
	events, stop := s.watch(qmp.EventMigration)
	defer stop()
	if err := c.Migrate(ctx, name); err != nil {
		_ = c.CloseFile(ctx, name)
		return err
	}
	if err := migrated(ctx, c, events); err != nil {
		return errors.Join(err, f.Sync()) // which tells what QEMU does not
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return machine.PutInPlace(f, path)
}

func migrationEvents(ctx context.Context, c *qmp.Client) error {
	return c.Execute(ctx, "migrate-set-capabilities", map[string]any{
		"capabilities": []map[string]any{{"capability": "events", "state": true}},
	}, nil)
}

// migrated waits for the end of a migration. When the context ends first it
// is cancelled.
func migrated(ctx context.Context, c *qmp.Client, events <-chan qmp.Event) (err error) {
	defer undo(&err, func(cleanup context.Context) error {
		if ctx.Err() != nil {
			return c.Execute(cleanup, "migrate_cancel", nil, nil)
		}
		return nil
	})
	// An event may be lost; the state is not.
	again := time.NewTicker(5 * time.Second)
	defer again.Stop()
	for {
		m, err := c.MigrationState(ctx)
		if err != nil {
			return err
		}
		if ended, err := m.Ended(); ended {
			return err
		}
		select {
		case <-events:
		case <-again.C:
		case <-c.Done():
			return c.Err()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// restore fills a machine that waits for it from its first descriptor, and
// lets it run.
func (s *session) restore(ctx context.Context, c *qmp.Client) error {
	if err := migrationEvents(ctx, c); err != nil {
		return err
	}
	events, stop := s.watch(qmp.EventMigration)
	defer stop()
	uri := fmt.Sprintf("fd:%d", restoreFD)
	err := c.Execute(ctx, "migrate-incoming", map[string]string{"uri": uri}, nil)
	if err == nil {
		err = migrated(ctx, c, events)
	}
	if err != nil {
		return api.Errorf(api.CodeCorrupt, "guest %s can't go on from its saved memory: %w", s.id, err).
			WithHint("its machine may be another now, or QEMU; discard what was saved, and it starts anew as after a power failure")
	}
	return c.Cont(ctx)
}
