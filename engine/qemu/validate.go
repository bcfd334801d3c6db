package qemu

import (
	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
)

// maxDevices is how many disks and ports a machine has slots for, beside its
// own devices.
const maxDevices = 20

// Validate implements machine.Monitor.
func (m *monitor) Validate(spec *engine.Spec) error {
	s := spec.Machine
	a, err := archNamed(s.Arch)
	if err != nil {
		return err
	}
	if n := len(spec.Mounts) + len(s.Disks) + len(spec.NICs); n > maxDevices {
		return api.Errorf(api.CodeUnsupported, "guest %s: a virtual machine has room for %d volumes, disks and ports, and not for %d", spec.ID, maxDevices, n)
	}
	if s.CPUs > maxCPUs {
		return api.Errorf(api.CodeUnsupported, "guest %s: a virtual machine has room for %d virtual CPUs, and not for %d", spec.ID, maxCPUs, s.CPUs).
			WithField("spec.resources.cpus")
	}
	if least := max(minMemory, a.memory); s.Memory < least {
		return api.Errorf(api.CodeInvalid, "guest %s: no virtual machine of %s comes up with %s of memory", spec.ID, a.name, s.Memory).
			WithField("spec.resources.memory").WithHint("give it %s or more", least)
	}
	drives := 0
	for _, d := range s.Disks {
		if d.CDROM {
			drives++
		}
		if d.CDROM && s.Firmware.Type == "" {
			return api.Errorf(api.CodeUnsupported, "guest %s: a machine that boots an image has no CD drive", spec.ID).WithField("spec.machine.iso")
		}
	}
	if drives > maxDrives {
		return api.Errorf(api.CodeUnsupported, "guest %s: a machine has %d CD drives, and not %d", spec.ID, maxDrives, drives)
	}
	if s.Firmware.Type != "" && s.Arch != "amd64" {
		return api.Errorf(api.CodeUnsupported, "guest %s: systems of their own run on machines of amd64 only; %s boots images", spec.ID, s.Arch).
			WithField("spec.machine.arch")
	}
	return nil
}

// maxDrives is how many CD drives a machine has: the ports of its disk
// controller.
const maxDrives = 6
