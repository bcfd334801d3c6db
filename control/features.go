package control

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
)

// feature is something that not every wall has.
type feature struct {
	field string
	asked func(*demand) string // what for, in words; empty if it isn't asked for
	has   func(engine.Capabilities, *demand) bool
}

// demand is an instance with what must be known of what it names.
type demand struct {
	*api.Instance
	trees, disks []string // names of its volumes, by type
}

// features are all that engines say in their Capabilities.
var features = []feature{
	{
		"spec.mounts", func(d *demand) string {
			i := slices.IndexFunc(d.Spec.Mounts, func(m api.Mount) bool { return m.HostPath != "" })
			if i < 0 {
				return ""
			}
			return "the host's directory " + d.Spec.Mounts[i].HostPath
		},
		func(c engine.Capabilities, _ *demand) bool { return c.HostPath },
	},
	{
		"spec.mounts", func(d *demand) string { return volumeOf("tree", d.trees) },
		func(c engine.Capabilities, _ *demand) bool { return c.Trees },
	},
	{
		"spec.mounts", func(d *demand) string { return volumeOf("disk", d.disks) },
		func(c engine.Capabilities, _ *demand) bool { return c.Disks },
	},
	{
		"spec.machine.firmware", func(d *demand) string { return when(ownSystem(d.Instance), "firmware to boot a system of its own") },
		func(c engine.Capabilities, _ *demand) bool { return c.Firmware },
	},
	{
		"spec.machine.iso", func(d *demand) string { return when(d.Spec.Machine.ISO != "", "a CD drive") },
		func(c engine.Capabilities, _ *demand) bool { return c.Firmware },
	},
	{
		"spec.machine.tpm", func(d *demand) string { return when(d.Spec.Machine.TPM, "a TPM") },
		func(c engine.Capabilities, _ *demand) bool { return c.TPM },
	},
	{
		"spec.machine.arch", func(d *demand) string {
			return when(d.Spec.Machine.Arch != "", "architecture "+archOf(d.Instance))
		},
		func(c engine.Capabilities, d *demand) bool { return slices.Contains(c.Archs, archOf(d.Instance)) },
	},
	{
		"spec.resources.diskWrite", func(d *demand) string {
			return when(d.Spec.Resources.DiskWrite > 0 || d.Spec.Resources.DiskWriteO > 0, "a limit of disk writes")
		},
		func(c engine.Capabilities, _ *demand) bool { return c.WriteLimits },
	},
	{
		"spec.resources.cpus", func(d *demand) string {
			return when(d.Spec.Resources.CPUs > 1, fmt.Sprintf("%d CPUs", cpusOf(d.Instance)))
		},
		func(c engine.Capabilities, d *demand) bool { return c.MaxCPUs == 0 || cpusOf(d.Instance) <= c.MaxCPUs },
	},
}

func when(asked bool, what string) string {
	if asked {
		return what
	}
	return ""
}

func volumeOf(typ string, names []string) string {
	if len(names) == 0 {
		return ""
	}
	return fmt.Sprintf("volume %q of type %s", names[0], typ)
}

// ownSystem tells whether a disk with a system of its own is booted, and not
// an image by the host's kernel.
func ownSystem(in *api.Instance) bool { return in.Spec.Machine.Firmware != "" || in.Spec.Image == "" }

// archOf is the architecture of the guest.
func archOf(in *api.Instance) string { return cmp.Or(in.Spec.Machine.Arch, runtime.GOARCH) }

// cpusOf are the virtual CPUs of a machine.
func cpusOf(in *api.Instance) int { return max(1, int(math.Ceil(in.Spec.Resources.CPUs))) }

// able refuses what the wall of an instance can't do, and says which can.
// Nothing has been made by then.
func (c *Controller) able(ctx context.Context, in *api.Instance) error {
	w, caps, err := c.usable(ctx, in.Spec.Kind)
	if err != nil {
		return err
	}
	d := c.demand(in)
	for _, f := range features {
		what := f.asked(d)
		if what == "" || f.has(caps, d) {
			continue
		}
		if caps, _ = w.look(ctx, true); f.has(caps, d) {
			continue // it was installed meanwhile
		}
		hint := c.kindsThat(ctx, func(caps engine.Capabilities) bool { return f.has(caps, d) })
		if r := w.remedy(archOf(in)); r != "" && f.field == "spec.machine.arch" {
			hint = r
		}
		return api.Errorf(api.CodeUnsupported, "instance %q needs %s, which kind %s does not have here", in.Name, what, w.Kind()).
			WithField(f.field).WithHint("%s", hint)
	}
	for i, name := range d.disks {
		if slices.Contains(d.disks[:i], name) {
			return api.Errorf(api.CodeInvalid, "instance %q has volume %q twice, which is a disk", in.Name, name).WithField("spec.mounts").
				WithHint("mount it at one place")
		}
	}
	if m, least := in.Spec.Resources.Memory, caps.LeastMemory(archOf(in)); m > 0 && m < least {
		return api.Errorf(api.CodeInvalid, "no guest of %s boots in %s of memory", archOf(in), m).WithField("spec.resources.memory").
			WithHint("kind %s needs at least %s", w.Kind(), least)
	}
	return nil
}

// remedy is what the engine advises about an architecture that it lacks.
func (w *wall) remedy(arch string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.findings {
		if f.Remedy != "" && strings.Contains(f.Name, arch) {
			return f.Remedy
		}
	}
	return ""
}

// demand looks up what the instance names. What isn't there is told by those
// who need it.
func (c *Controller) demand(in *api.Instance) *demand {
	d := &demand{Instance: in}
	for _, m := range in.Spec.Mounts {
		v, err := c.volumes.Get(in.Project, m.Volume)
		switch {
		case m.Volume == "" || err != nil:
		case v.Spec.Type == api.VolumeDisk:
			d.disks = append(d.disks, v.Name)
		default:
			d.trees = append(d.trees, v.Name)
		}
	}
	return d
}
