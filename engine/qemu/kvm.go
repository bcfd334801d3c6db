package qemu

import (
	"errors"
	"fmt"
	"io/fs"
	"runtime"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/qemu/accel"
)

// kvmState is what measuring /dev/kvm said.
type kvmState struct {
	usable bool
	detail string
	remedy string
}

// judge makes it of a measurement.
func judge(speed accel.Speed, err error) *kvmState {
	const translated = "guests are translated (TCG): all works, about ten times slower"
	switch {
	case errors.Is(err, accel.ErrNoDevice):
		return &kvmState{
			detail: translated + "; this host has no /dev/kvm",
			remedy: "enable virtualization in the host's firmware setup and load the module kvm_intel or kvm_amd; in a virtual machine, let its own host pass virtualization on (nested)",
		}
	case errors.Is(err, fs.ErrPermission):
		return &kvmState{detail: fmt.Sprintf("%s; /dev/kvm: %v", translated, err), remedy: "let the daemon open /dev/kvm"}
	case err != nil:
		return &kvmState{detail: fmt.Sprintf("%s; /dev/kvm is there and doesn't work: %v", translated, err), remedy: "see the kernel's messages about kvm"}
	case speed < accel.Enough:
		return &kvmState{
			detail: fmt.Sprintf("%s; /dev/kvm is there, but executes %v only: it interprets, which is slower than translation", translated, speed),
			remedy: "use a host with hardware virtualization; in a virtual machine, let its own host pass virtualization on (nested)",
		}
	}
	return &kvmState{usable: true, detail: "KVM, measured: " + speed.String()}
}

// measureKVM measures anew: what was missing may have been loaded.
func (m *monitor) measureKVM() *kvmState {
	k := judge(m.speed())
	m.mu.Lock()
	defer m.mu.Unlock()
	m.kvm = k
	return k
}

// accel chooses how a machine's instructions are executed.
func (m *monitor) accel(spec *engine.Machine) (string, error) {
	if spec.Accel == "tcg" || spec.Accel == "" && spec.Arch != runtime.GOARCH {
		return "tcg", nil
	}
	refuse := func(why string) (string, error) {
		return "", api.Errorf(api.CodeUnsupported, "KVM can't be used: %s", why).WithField("spec.machine.accel")
	}
	if spec.Arch != runtime.GOARCH {
		return refuse(fmt.Sprintf("this host executes %s, and not %s", runtime.GOARCH, spec.Arch))
	}
	m.mu.Lock()
	k := m.kvm
	m.mu.Unlock()
	if k == nil {
		k = m.measureKVM()
	}
	switch {
	case k.usable:
		return "kvm", nil
	case spec.Accel == "":
		return "tcg", nil
	}
	_, err := refuse(k.detail)
	return "", api.AsError(err).WithHint("%s; or leave the accelerator to be chosen", k.remedy)
}
