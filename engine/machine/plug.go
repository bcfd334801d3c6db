package machine

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/cleave-project/cleave/agent"
	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/machine/vitals"
)

// This is the guest's side of devices that come and go while it runs, for
// engines that can plug them. A system of its own sees to them itself.

// bootName is a copy of what the control disk tells: the host doesn't read
// back what a guest may have written to.
const bootName = "boot.json"

// plugTime is how long a guest may take to find a device and make use of it.
const plugTime = 2 * time.Minute

func keepBoot(dir string, b *vitals.Boot) error {
	text, err := json.Marshal(b)
	if err != nil {
		return err
	}
	name := filepath.Join(dir, bootName)
	if err := os.WriteFile(name+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

// bootOf is what a guest made of an image finds when it boots by itself.
func bootOf(g *Guest) (*vitals.Boot, error) {
	text, err := os.ReadFile(filepath.Join(g.Dir, bootName))
	if errors.Is(err, os.ErrNotExist) {
		return nil, api.Errorf(api.CodeUnsupported, "guest %s was started by an older edition, which noted too little to change its devices", g.ID).
			WithHint("restart it")
	}
	if err != nil {
		return nil, err
	}
	b := &vitals.Boot{}
	return b, json.Unmarshal(text, b)
}

// rewriteBoot changes what the guest finds when it boots by itself: a reset
// leaves the devices of a machine in their places.
func rewriteBoot(g *Guest, change func(*vitals.Boot)) error {
	b, err := bootOf(g)
	if err != nil {
		return err
	}
	change(b)
	if err := keepBoot(g.Dir, b); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(g.Dir, controlName), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return vitals.RewriteBoot(f, b)
}

// OpenDisk opens a disk that is to be plugged into a running guest. That of a
// volume is made on first use.
func (e *Engine) OpenDisk(ctx context.Context, id string, d engine.Disk) (*os.File, error) {
	if d.Size == 0 {
		return openMedium(d)
	}
	_, rec, err := e.find(id)
	if err != nil {
		return nil, err
	}
	if rec.Machine.UIDBase == 0 {
		return nil, api.Errorf(api.CodeUnsupported, "guest %s was started by an older edition, which noted too little to give it a volume", id).WithHint("restart it")
	}
	return ownDisk(ctx, "disk at "+d.Target, d.Path, d.Size, nil, d.ReadOnly, rec.Machine.UIDBase)
}

// mounts tells whether the guest is asked to mount a disk.
func mounts(g *Guest, d engine.Disk) bool { return !g.Firmware && d.Target != "" }

// MountDisk has a guest made of an image mount a disk that was plugged, now
// and whenever it boots by itself.
func (e *Engine) MountDisk(ctx context.Context, g *Guest, d engine.Disk) error {
	if !mounts(g, d) {
		return nil
	}
	if _, err := bootOf(g); err != nil {
		return err
	}
	if err := e.mount(ctx, g, volumeOf(d)); err != nil {
		return err
	}
	return rewriteBoot(g, func(b *vitals.Boot) {
		b.Mounts = append(without(b.Mounts, d.ID), vitals.Mount{Disk: d.ID, Target: d.Target, ReadOnly: d.ReadOnly})
	})
}

func (e *Engine) mount(ctx context.Context, g *Guest, v agent.Volume) error {
	ctx, cancel := context.WithTimeout(ctx, plugTime)
	defer cancel()
	return e.ask(ctx, g.ID, func(c *agent.Client) error { return c.Mount(ctx, v) })
}

// GrownRoot has a guest made of an image use all of its root disk, which has
// become larger.
func (e *Engine) GrownRoot(ctx context.Context, g *Guest) error {
	if g.Firmware {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, plugTime)
	defer cancel()
	return e.ask(ctx, g.ID, func(c *agent.Client) error { return c.Grow(ctx, RoleRoot) })
}

func volumeOf(d engine.Disk) agent.Volume {
	return agent.Volume{Disk: d.ID, Target: d.Target, ReadOnly: d.ReadOnly}
}

func without(list []vitals.Mount, disk string) []vitals.Mount {
	return slices.DeleteFunc(list, func(m vitals.Mount) bool { return m.Disk == disk })
}

// UnmountDisk is called before a disk is unplugged. When a guest made of an
// image uses it, it fails with "in-use"; undo has it mounted again.
func (e *Engine) UnmountDisk(ctx context.Context, g *Guest, disk string) (undo func(context.Context) error, err error) {
	undo = func(context.Context) error { return nil }
	if g.Firmware {
		return undo, nil
	}
	b, err := bootOf(g)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(b.Mounts, func(m vitals.Mount) bool { return m.Disk == disk })
	if i < 0 {
		return undo, nil
	}
	m := b.Mounts[i]
	d := engine.Disk{ID: disk, Target: m.Target, ReadOnly: m.ReadOnly}
	ctx, cancel := context.WithTimeout(ctx, plugTime)
	defer cancel()
	if err := e.ask(ctx, g.ID, func(c *agent.Client) error { return c.Unmount(ctx, volumeOf(d)) }); err != nil {
		return nil, err
	}
	undo = func(ctx context.Context) error { return e.MountDisk(ctx, g, d) }
	return undo, rewriteBoot(g, func(b *vitals.Boot) { b.Mounts = without(b.Mounts, disk) })
}

// ConfigureNIC gives the interface of a port that was plugged its name and
// addresses in a guest made of an image, now and whenever it boots by itself.
func (e *Engine) ConfigureNIC(ctx context.Context, g *Guest, n engine.NIC) error {
	if g.Firmware {
		return nil
	}
	if _, err := bootOf(g); err != nil {
		return err
	}
	v := nic(n)
	ctx, cancel := context.WithTimeout(ctx, plugTime)
	defer cancel()
	link := agent.Link{Name: v.Name, MAC: v.MAC, MTU: v.MTU, Prefixes: v.Prefixes, Gateways: v.Gateways}
	if err := e.ask(ctx, g.ID, func(c *agent.Client) error { return c.Link(ctx, link) }); err != nil {
		return err
	}
	return rewriteBoot(g, func(b *vitals.Boot) { b.NICs = append(withoutNIC(b.NICs, n.Name), v) })
}

// ForgetNIC has a guest not look for a port that was unplugged when it boots
// by itself.
func (e *Engine) ForgetNIC(g *Guest, name string) error {
	if g.Firmware {
		return nil
	}
	return rewriteBoot(g, func(b *vitals.Boot) { b.NICs = withoutNIC(b.NICs, name) })
}

func withoutNIC(list []vitals.NIC, name string) []vitals.NIC {
	return slices.DeleteFunc(list, func(n vitals.NIC) bool { return n.Name == name })
}
