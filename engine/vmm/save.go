package vmm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/machine"
	"github.com/cleave-project/cleave/vmm/control"
)

// A guest's memory is saved in one file: what cleave-vmm writes as memory, as
// it is laid out in the guest, so that it can be mapped; behind that the
// state; and at the end how long the state is, and what the file is.
const (
	savedMagic = "cleave-vmm saved"
	tailSize   = 8 + len(savedMagic)
	mostState  = 64 << 20
)

var _ engine.Saver = (*Engine)(nil)

// Save implements engine.Saver.
func (e *Engine) Save(ctx context.Context, id, path string) error {
	g, err := e.Guest(id)
	if err != nil {
		return err
	}
	err = do(ctx, g, func(ctx context.Context, c *control.Client) error { return save(ctx, c, g, path) })
	if err != nil {
		_ = os.Remove(path + ".part")
		_ = os.Remove(path)
		if full(err) {
			return api.Errorf(api.CodeNoSpace, "save the memory of guest %s in %s: %w", id, filepath.Dir(path), err).
				WithHint("free space there; the guest runs on")
		}
		return err
	}
	// It is in the file: from here on the guest must not run any more.
	return do(ctx, g, func(ctx context.Context, c *control.Client) error { return c.Stop(ctx) })
}

// full tells whether a disk is, which the monitor says in words.
func full(err error) bool {
	return strings.Contains(err.Error(), unix.ENOSPC.Error()) || strings.Contains(err.Error(), unix.EDQUOT.Error())
}

// save has the guest stand still with its memory in a file, which gets its
// name when it is on the disk. When that fails the guest runs on.
func save(ctx context.Context, c *control.Client, g *machine.Guest, path string) (err error) {
	before, err := c.Status(ctx)
	if err != nil {
		return err
	}
	for _, d := range before.Devices {
		if name, ok := strings.CutPrefix(d, plugged); ok {
			return api.Errorf(api.CodeUnsupported, "guest %s: its memory can't be saved, since %s was added while it ran", g.ID, name).
				WithHint("detach it, or restart the guest once")
		}
	}
	if err := c.Pause(ctx); err != nil {
		return err
	}
	defer undo(&err, func(ctx context.Context) error {
		if before.State != "running" {
			return nil
		}
		return do(ctx, g, func(ctx context.Context, c *control.Client) error { return c.Resume(ctx) })
	})
	f, err := os.OpenFile(path+".part", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("save the memory of guest %s: %w", g.ID, err)
	}
	defer f.Close()
	state, err := memoryFile("state")
	if err != nil {
		return err
	}
	defer state.Close()
	if err := c.Save(ctx, control.Save{}, state, f); err != nil {
		return fmt.Errorf("save the memory of guest %s: %w", g.ID, err)
	}
	if err := finish(f, state); err != nil {
		return fmt.Errorf("save the memory of guest %s: %w", g.ID, err)
	}
	return machine.PutInPlace(f, path)
}

// finish puts the state behind the memory, and all on the disk.
func finish(f, state *os.File) error {
	if _, err := state.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekEnd); err != nil {
		return err
	}
	n, err := io.Copy(f, state)
	if err != nil {
		return err
	}
	if _, err := f.Write(append(binary.LittleEndian.AppendUint64(nil, uint64(n)), savedMagic...)); err != nil {
		return err
	}
	return f.Sync()
}

func memoryFile(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a file in memory: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// stateOf finds the state in a file: where it is, and how long.
func stateOf(f *os.File) (at, size int64, err error) {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, 0, err
	}
	tail := make([]byte, tailSize)
	if _, err := f.ReadAt(tail, max(0, end-int64(tailSize))); err != nil && err != io.EOF {
		return 0, 0, err
	}
	n := binary.LittleEndian.Uint64(tail)
	if string(tail[8:]) != savedMagic || n > mostState || int64(n) > end-int64(tailSize) {
		return 0, 0, errors.New("it isn't a whole file of this engine")
	}
	return end - int64(tailSize) - int64(n), int64(n), nil
}

// isOurs says why a file is none that this engine can go on from.
func isOurs(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, _, err = stateOf(f)
	return err
}

// savedState is the state in a file, as one of its own.
func savedState(f *os.File) (_ *os.File, err error) {
	at, n, err := stateOf(f)
	if err != nil {
		return nil, api.Errorf(api.CodeCorrupt, "the saved memory can't be used: %w", err)
	}
	state, err := memoryFile("state")
	if err != nil {
		return nil, err
	}
	if _, err = io.Copy(state, io.NewSectionReader(f, at, n)); err == nil {
		_, err = state.Seek(0, io.SeekStart)
	}
	if err != nil {
		state.Close()
		return nil, err
	}
	return state, nil
}
