package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cleave-project/cleave/agent"
	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/image/layer"
	"github.com/cleave-project/cleave/internal/sparse"
)

// A guest moves behind another wall by its root alone: the image is the same
// on both sides. Between machines that is the disk; else it is the layer that
// was written over the image. The host reads and writes it where it is a
// directory, and the guest's own kernel where it is on a disk: a file system
// that a guest may have written is never mounted here.

// changeKind makes a root for the instance as it is to be, beside the one
// that it has. drop removes it again.
func (t *task) changeKind(ctx context.Context, g *guest, now *api.Instance) (changed *api.Instance, drop func(), err error) {
	if g != nil {
		return nil, nil, api.Errorf(api.CodeConflict, "instance %q runs: its wall can't be changed", now.Name).WithHint("`cleave stop %s` first", now.Name)
	}
	if ownSystem(now) {
		return nil, nil, fixed("spec.kind", now.Name)
	}
	changed = t.c.instances.Clone(now)
	changed.Status.Volume = nextVolume(t.in)
	drop = func() { t.dropRoot(changed) }
	t.dropRoot(changed) // what an attempt before us left
	if err := t.fillRoot(ctx, t.in, changed); err != nil {
		drop()
		return nil, nil, err
	}
	return changed, drop, nil
}

// nextVolume is the name of the root volume that takes the place of the
// instance's.
func nextVolume(in *api.Instance) string {
	n := 1
	if _, number, ok := strings.Cut(strings.TrimPrefix(rootVolume(in), "i-"), "-"); ok {
		n, _ = strconv.Atoi(number)
	}
	return fmt.Sprintf("i-%s-%d", in.ID, n+1)
}

// dropRoot deletes the root volume of an instance as it was or could have
// been. What can't be deleted now goes when the daemon starts.
func (t *task) dropRoot(in *api.Instance) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.c.ctx), undoTime)
	defer cancel()
	d, err := t.c.driver(cmp.Or(in.Spec.Root.Pool, defaultPool))
	if err == nil {
		err = d.Delete(ctx, rootVolume(in))
	}
	if err != nil {
		t.c.log.Error("a root that isn't needed could not be deleted", "instance", in.Name, "volume", rootVolume(in), "error", err)
	}
}

// fillRoot makes the root volume of to with all that is in from's.
func (t *task) fillRoot(ctx context.Context, from, to *api.Instance) error {
	source, release, err := t.openRoot(ctx, from)
	if err != nil {
		return err
	}
	defer release()
	img, err := t.c.imageOf(ctx, to)
	if err != nil {
		return err
	}
	d, err := t.c.driver(cmp.Or(to.Spec.Root.Pool, defaultPool))
	if err != nil {
		return err
	}
	t.progress("creating the root volume", 0, 0)
	if err := d.Create(ctx, rootVolume(to), rootQuota(to, img)); err != nil {
		return called(err, rootVolume(to), "root of "+to.Name)
	}
	target, releaseTarget, err := t.openRoot(ctx, to)
	if err != nil {
		return err
	}
	defer releaseTarget()
	if isMachine(to) {
		noCopyOnWrite(target)
	}
	t.progress("copying", 0, 0)
	switch {
	case isMachine(from) && isMachine(to):
		return t.copyDisk(ctx, source, target, rootSize(to, img))
	case isMachine(from):
		return t.layerFromMachine(ctx, from, target)
	}
	return t.layerFromDir(ctx, source, to, target)
}

// openRoot makes a root volume reachable.
func (t *task) openRoot(ctx context.Context, in *api.Instance) (dir string, release func(), err error) {
	d, err := t.c.driver(cmp.Or(in.Spec.Root.Pool, defaultPool))
	if err != nil {
		return "", nil, err
	}
	id := rootVolume(in)
	if dir, err = d.Path(ctx, id); err != nil {
		return "", nil, err
	}
	return dir, func() {
		if err := d.Release(context.WithoutCancel(ctx), id); err != nil {
			t.c.log.Error("a volume could not be released", "instance", in.Name, "volume", id, "error", err)
		}
	}, nil
}

// copyDisk copies the disk of a machine. One that has none yet has written
// nothing.
func (t *task) copyDisk(ctx context.Context, source, target string, size api.Bytes) error {
	src, err := os.Open(filepath.Join(source, engine.RootDisk))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("root disk: %w", err)
	}
	defer src.Close()
	dst, err := os.OpenFile(filepath.Join(target, engine.RootDisk), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("root disk: %w", err)
	}
	defer dst.Close()
	if err := sparse.Copy(ctx, dst, src, func(done, total int64) { t.progress("copying", done, total) }); err != nil {
		return fmt.Errorf("copying the root disk: %w", err)
	}
	st, err := dst.Stat()
	if err == nil && st.Size() < int64(size) {
		err = dst.Truncate(int64(size))
	}
	return errors.Join(err, dst.Sync())
}

// layerFromDir copies the layer of a container, to another one or to a
// machine.
func (t *task) layerFromDir(ctx context.Context, source string, to *api.Instance, target string) error {
	upper, err := os.Open(filepath.Join(source, "upper"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it was never started
	}
	if err != nil {
		return fmt.Errorf("root volume: %w", err)
	}
	defer upper.Close()
	r, w := io.Pipe()
	defer r.Close()
	written := make(chan struct{})
	go func() {
		defer close(written)
		w.CloseWithError(layer.Write(ctx, &counter{w: w, tell: t.counted}, upper))
	}()
	if isMachine(to) {
		err = t.attend(ctx, to, func(ctx context.Context, a *agent.Client) error { return a.SetLayer(ctx, r) })
	} else {
		err = writeLayer(ctx, r, target)
	}
	r.CloseWithError(errors.Join(err, io.ErrClosedPipe))
	<-written
	return err
}

// layerFromMachine copies the layer of a machine to a container's root.
func (t *task) layerFromMachine(ctx context.Context, from *api.Instance, target string) error {
	dir, release, err := t.openRoot(ctx, from)
	if err != nil {
		return err
	}
	defer release()
	if _, err := os.Stat(filepath.Join(dir, engine.RootDisk)); errors.Is(err, fs.ErrNotExist) {
		return nil // it was never started
	}
	return t.attend(ctx, from, func(ctx context.Context, a *agent.Client) error {
		r, err := a.Layer(ctx)
		if err != nil {
			return err
		}
		defer r.Close()
		return writeLayer(ctx, io.TeeReader(r, &counter{w: io.Discard, tell: t.counted}), target)
	})
}

func (t *task) counted(n int64) { t.progress("copying", n, 0) }

// counter tells how much went through it.
type counter struct {
	w    io.Writer
	n    int64
	last int64
	tell func(int64)
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	if c.n += int64(n); c.n-c.last >= 4<<20 {
		c.last = c.n
		c.tell(c.n)
	}
	return n, err
}

// writeLayer makes the directories of a container's root with a layer.
func writeLayer(ctx context.Context, r io.Reader, dir string) error {
	for _, name := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			return fmt.Errorf("root volume: %w", err)
		}
	}
	upper, err := os.Open(filepath.Join(dir, "upper"))
	if err != nil {
		return fmt.Errorf("root volume: %w", err)
	}
	defer upper.Close()
	return layer.Read(ctx, r, upper, layer.Options{IDs: idsPerGuest})
}

// attendTime bounds how long a machine takes to be shut down after upkeep.
const attendTime = 30 * time.Second

// attend starts a machine with nothing but its agent, has work done in it,
// and shuts it down.
func (t *task) attend(ctx context.Context, in *api.Instance, work func(context.Context, *agent.Client) error) (err error) {
	c := t.c
	e, err := c.engineFor(in.Spec.Kind)
	if err != nil {
		return err
	}
	spec, _, err := (&task{c: c, in: in}).spec(ctx)
	if err != nil {
		return err
	}
	spec.Maintenance, spec.Mounts, spec.NICs, spec.Root.ReadOnly = true, nil, nil, false
	c.wire(spec, nil)
	t.progress("starting "+in.Name+" for upkeep", 0, 0)
	g := c.expect(in.ID)
	g.upkeep = true
	found, err := e.Start(ctx, spec)
	defer func() {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		err = errors.Join(err, e.Clean(undo, in.ID))
		c.forget(in.ID)
	}()
	if err != nil {
		return err
	}
	c.adopt(g, *found)
	a, err := greet(ctx, e, in.ID)
	if err != nil {
		return err
	}
	defer a.Close()
	t.progress("copying", 0, 0)
	if err := work(ctx, a); err != nil {
		return err
	}
	if err := a.PowerOff(ctx, false); err != nil {
		return err
	}
	select {
	case <-g.ended:
	case <-time.After(attendTime): // all is on the disk; Clean ends the rest
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}
