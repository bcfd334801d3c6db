package control

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/image/disk"
)

// exports keeps disks that are being read from being written to: an instance
// is either exported, by any number of readers, or started.
type exports struct {
	mu sync.Mutex
	by map[string]int // by instance: readers, or -1 while it starts
}

// read begins an export unless the instance is being started.
func (e *exports) read(id string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.by[id] < 0 {
		return false
	}
	if e.by == nil {
		e.by = map[string]int{}
	}
	e.by[id]++
	return true
}

// start begins a start unless the instance is being exported.
func (e *exports) start(id string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.by[id] > 0 {
		return false
	}
	if e.by == nil {
		e.by = map[string]int{}
	}
	e.by[id] = -1
	return true
}

// done ends what read or start began.
func (e *exports) done(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.by[id] > 1 {
		e.by[id]--
		return
	}
	delete(e.by, id)
}

// ExportInstance writes the disk of a stopped system of its own, in one of
// disk.ExportFormats. It can't be started meanwhile.
func (c *Controller) ExportInstance(ctx context.Context, project, name, format string, w io.Writer) error {
	in, err := c.Instance(project, name)
	if err != nil {
		return err
	}
	if err := c.exportable(in); err != nil {
		return err
	}
	if !c.exports.read(in.ID) {
		return api.Errorf(api.CodeConflict, "instance %q is being started", name).WithHint("`cleave stop %s` first", name)
	}
	defer c.exports.done(in.ID)
	// It may have been started just before.
	if in, err = c.Instance(project, name); err != nil {
		return err
	}
	if err := c.exportable(in); err != nil {
		return err
	}
	d, err := c.driver(cmp.Or(in.Spec.Root.Pool, defaultPool))
	if err != nil {
		return err
	}
	dir, err := d.Path(ctx, rootVolume(in))
	if err != nil {
		return called(err, rootVolume(in), "root of "+name)
	}
	f, err := os.Open(filepath.Join(dir, engine.RootDisk))
	if err != nil {
		return fmt.Errorf("disk of %s: %w", name, err)
	}
	defer f.Close()
	return c.images.ExportDisk(ctx, f, disk.Machine{
		Name: in.Name, CPUs: cpusOf(in), Memory: memoryOf(in), Firmware: in.Spec.Machine.Firmware,
	}, format, w)
}

func (c *Controller) exportable(in *api.Instance) error {
	if !isMachine(in) || !ownSystem(in) {
		return api.Errorf(api.CodeUnsupported, "instance %q has no disk that boots by itself: its system is an image, and its root what was changed in that", in.Name).
			WithHint("`cleave image export` writes the image, `cleave cp` files of the instance")
	}
	if c.live(in.ID) != nil {
		return api.Errorf(api.CodeConflict, "instance %q is %s: its disk changes while it is read", in.Name, in.Status.Phase).WithHint("`cleave stop %s` first", in.Name)
	}
	return copyable(in)
}
