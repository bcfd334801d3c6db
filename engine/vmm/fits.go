package vmm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/qemu/accel"
)

const (
	// maxDevices is how many disks and ports a machine has slots for, beside
	// its own devices.
	maxDevices = 20
	maxCPUs    = 254
	// minMemory is less than which Debian's kernel doesn't come up with our
	// initramfs.
	minMemory = 96 * api.MiB
)

// States of a finding.
const (
	ok      = "ok"
	limited = "limited"
)

// fits says why a guest is none for this engine.
func (m *monitor) fits(spec *engine.Spec) error {
	s := spec.Machine
	no := func(field, format string, args ...any) error {
		return api.Errorf(api.CodeUnsupported, "the engine vmm %s", fmt.Sprintf(format, args...)).
			WithField(field).WithHint("leave the engine to be chosen, or use --engine qemu")
	}
	switch {
	case s == nil || s.Firmware.Type != "" || s.Kernel.Image == "":
		return no("spec.machine.firmware", "boots images with a kernel of the host's, and has no firmware for systems of their own")
	case s.Arch != "" && s.Arch != runtime.GOARCH:
		return no("spec.machine.arch", "executes on the host's processor (%s), not on %s", runtime.GOARCH, s.Arch)
	case s.Accel == "tcg":
		return no("spec.machine.accel", "doesn't translate instructions")
	case s.CPUs > maxCPUs:
		return no("spec.resources.cpus", "has machines of up to %d virtual CPUs, not %d", maxCPUs, s.CPUs)
	case len(spec.Mounts)+len(s.Disks)+len(spec.NICs) > maxDevices:
		return no("spec.mounts", "has room for %d volumes, disks and ports", maxDevices)
	}
	for _, d := range s.Disks {
		if d.CDROM {
			return no("spec.machine.iso", "has no CD drive")
		}
	}
	if s.Restore != "" {
		if err := isOurs(s.Restore); err != nil {
			return no("spec.machine", "can't go on from memory that another engine saved: %v", err)
		}
	}
	return m.works()
}

// Validate implements machine.Monitor.
func (m *monitor) Validate(spec *engine.Spec) error {
	if err := m.fits(spec); err != nil {
		return err
	}
	if s := spec.Machine; s.Memory < minMemory {
		return api.Errorf(api.CodeInvalid, "guest %s: no virtual machine comes up with %s of memory", spec.ID, s.Memory).
			WithField("spec.resources.memory").WithHint("give it %s or more", minMemory)
	}
	return nil
}

// works says what of this host keeps the engine from running any guest.
func (m *monitor) works() error {
	m.mu.Lock()
	k := m.kvm
	m.mu.Unlock()
	if k == nil {
		k = m.measure()
	}
	if k.usable {
		return nil
	}
	return api.Errorf(api.CodeUnsupported, "the engine vmm can't be used: %s", k.detail).WithField("spec.machine.engine").
		WithHint("leave the engine to be chosen, or use --engine qemu")
}

// state is what was found of the host.
type state struct {
	usable         bool
	detail, remedy string
}

// measure measures anew: what was missing may have been loaded.
func (m *monitor) measure() *state {
	k := judge(m.speed())
	if _, err := os.Stat(m.binary); err != nil {
		k = &state{detail: fmt.Sprintf("its program is missing: %v", err), remedy: "install cleave-vmm beside cleaved"}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.kvm = k
	return k
}

func judge(speed accel.Speed, err error) *state {
	switch {
	case errors.Is(err, accel.ErrNoDevice):
		return &state{detail: "this host has no /dev/kvm"}
	case errors.Is(err, fs.ErrPermission):
		return &state{detail: fmt.Sprintf("/dev/kvm: %v", err), remedy: "let the daemon open /dev/kvm"}
	case err != nil:
		return &state{detail: fmt.Sprintf("/dev/kvm doesn't work: %v", err)}
	case speed < accel.Enough:
		return &state{detail: fmt.Sprintf("/dev/kvm executes %v only", speed)}
	}
	return &state{usable: true, detail: "guests made of images, over KVM, measured: " + speed.String()}
}
