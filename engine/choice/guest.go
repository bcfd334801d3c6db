package choice

import (
	"context"
	"net"
	"os"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
)

// What concerns one guest goes to its engine.

// Signal implements engine.Engine.
func (e *Engine) Signal(ctx context.Context, id, signal string) error {
	return e.of(id).Signal(ctx, id, signal)
}

// Pause implements engine.Engine.
func (e *Engine) Pause(ctx context.Context, id string) error { return e.of(id).Pause(ctx, id) }

// Resume implements engine.Engine.
func (e *Engine) Resume(ctx context.Context, id string) error { return e.of(id).Resume(ctx, id) }

// Update implements engine.Engine.
func (e *Engine) Update(ctx context.Context, id string, r api.Resources, root string) error {
	return e.of(id).Update(ctx, id, r, root)
}

// Stats implements engine.Engine.
func (e *Engine) Stats(ctx context.Context, id string) (api.Stats, error) {
	return e.of(id).Stats(ctx, id)
}

// Agent implements engine.Engine.
func (e *Engine) Agent(ctx context.Context, id string) (net.Conn, error) {
	return e.of(id).Agent(ctx, id)
}

// Console implements engine.Engine.
func (e *Engine) Console(ctx context.Context, id string, opts engine.ConsoleOptions) (engine.Console, error) {
	return e.of(id).Console(ctx, id, opts)
}

// LogDir implements engine.Engine.
func (e *Engine) LogDir(id string) string { return e.of(id).LogDir(id) }

// capable is a guest's engine as what it may be able to do beyond
// engine.Engine.
func capable[T any](e *Engine, id, what string) (T, error) {
	m := e.of(id)
	t, ok := m.(T)
	if ok {
		return t, nil
	}
	hint := "no engine of this kind can do that"
	if _, ok := e.last().(T); ok {
		hint = "stop it, and start it with --engine " + e.last().Name()
	}
	return t, api.Errorf(api.CodeUnsupported, "guest %s is run by the engine %s, which can't %s", id, m.Name(), what).WithHint("%s", hint)
}

// VNC implements engine.Display.
func (e *Engine) VNC(ctx context.Context, id string) (net.Conn, error) {
	d, err := capable[engine.Display](e, id, "show a screen")
	if err != nil {
		return nil, err
	}
	return d.VNC(ctx, id)
}

// Screenshot implements engine.Display.
func (e *Engine) Screenshot(ctx context.Context, id string) ([]byte, error) {
	d, err := capable[engine.Display](e, id, "show a screen")
	if err != nil {
		return nil, err
	}
	return d.Screenshot(ctx, id)
}

// Boot implements engine.Booter.
func (e *Engine) Boot(ctx context.Context, id string) (engine.BootState, error) {
	b, err := capable[engine.Booter](e, id, "tell how its boot goes")
	if err != nil {
		return engine.BootState{}, err
	}
	return b.Boot(ctx, id)
}

const plug = "change the devices of a running guest"

// AttachDisk implements engine.Plugger.
func (e *Engine) AttachDisk(ctx context.Context, id string, d engine.Disk) error {
	p, err := capable[engine.Plugger](e, id, plug)
	if err != nil {
		return err
	}
	return p.AttachDisk(ctx, id, d)
}

// DetachDisk implements engine.Plugger.
func (e *Engine) DetachDisk(ctx context.Context, id, disk string) error {
	p, err := capable[engine.Plugger](e, id, plug)
	if err != nil {
		return err
	}
	return p.DetachDisk(ctx, id, disk)
}

// InsertMedium implements engine.Plugger.
func (e *Engine) InsertMedium(ctx context.Context, id, path string) error {
	p, err := capable[engine.Plugger](e, id, plug)
	if err != nil {
		return err
	}
	return p.InsertMedium(ctx, id, path)
}

// AttachNIC implements engine.Plugger.
func (e *Engine) AttachNIC(ctx context.Context, id string, n engine.NIC, tap *os.File) error {
	p, err := capable[engine.Plugger](e, id, plug)
	if err != nil {
		return err
	}
	return p.AttachNIC(ctx, id, n, tap)
}

// DetachNIC implements engine.Plugger.
func (e *Engine) DetachNIC(ctx context.Context, id, name string) error {
	p, err := capable[engine.Plugger](e, id, plug)
	if err != nil {
		return err
	}
	return p.DetachNIC(ctx, id, name)
}

// GrowRoot implements engine.Grower.
func (e *Engine) GrowRoot(ctx context.Context, id string, size api.Bytes) error {
	g, err := capable[engine.Grower](e, id, "make its disk larger while it runs")
	if err != nil {
		return err
	}
	return g.GrowRoot(ctx, id, size)
}

// Save implements engine.Saver.
func (e *Engine) Save(ctx context.Context, id, path string) error {
	s, err := capable[engine.Saver](e, id, "keep a guest's memory")
	if err != nil {
		return err
	}
	return s.Save(ctx, id, path)
}

const track = "tell which blocks of its disks were changed"

// MarkDisk implements engine.Tracker.
func (e *Engine) MarkDisk(ctx context.Context, id, disk string) (string, error) {
	t, err := capable[engine.Tracker](e, id, track)
	if err != nil {
		return "", err
	}
	return t.MarkDisk(ctx, id, disk)
}

// ChangedSince implements engine.Tracker.
func (e *Engine) ChangedSince(ctx context.Context, id, disk, mark string) (engine.Changes, error) {
	t, err := capable[engine.Tracker](e, id, track)
	if err != nil {
		return engine.Changes{}, err
	}
	return t.ChangedSince(ctx, id, disk, mark)
}

// ForgetMark implements engine.Tracker.
func (e *Engine) ForgetMark(ctx context.Context, id, disk, mark string) error {
	t, err := capable[engine.Tracker](e, id, track)
	if err != nil {
		return err
	}
	return t.ForgetMark(ctx, id, disk, mark)
}

// Inspect implements engine.Inspector.
func (e *Engine) Inspect(ctx context.Context, id string) (engine.Vitals, error) {
	i, err := capable[engine.Inspector](e, id, "tell more of it")
	if err != nil {
		return engine.Vitals{}, err
	}
	return i.Inspect(ctx, id)
}
