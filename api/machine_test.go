package api

import (
	"errors"
	"testing"
)

func TestMachineSettingsAreCheckedByKind(t *testing.T) {
	image := func(s *InstanceSpec) { s.Kind, s.Image = KindVM, "base" }
	own := func(s *InstanceSpec) { s.Kind, s.Machine.Firmware = KindVM, "bios" }
	for _, c := range []struct {
		name   string
		base   func(*InstanceSpec)
		change func(*InstanceSpec)
		field  string // empty if it is allowed
		code   Code
	}{
		{"a container has no kernel", func(s *InstanceSpec) { s.Image = "base" }, func(s *InstanceSpec) { s.Machine.Kernel = "6.1" }, "spec.machine.kernel", CodeUnsupported},
		{"a container has no medium", func(s *InstanceSpec) { s.Image = "base" }, func(s *InstanceSpec) { s.Machine.ISO = "x" }, "spec.machine.iso", CodeUnsupported},
		{"a container needs an image", func(*InstanceSpec) {}, func(*InstanceSpec) {}, "spec.image", CodeInvalid},
		{"an image takes a kernel", image, func(s *InstanceSpec) { s.Machine.Kernel = "6.1.0-32-cloud-amd64" }, "", ""},
		{"an image takes any sysctl", image, func(s *InstanceSpec) { s.Sysctls = map[string]string{"vm.swappiness": "1"} }, "", ""},
		{"an image has no TPM", image, func(s *InstanceSpec) { s.Machine.TPM = true }, "spec.machine.tpm", CodeUnsupported},
		{"a kernel's name", image, func(s *InstanceSpec) { s.Machine.Kernel = "../x" }, "spec.machine.kernel", CodeInvalid},
		{"an architecture", image, func(s *InstanceSpec) { s.Machine.Arch = "vax" }, "spec.machine.arch", CodeInvalid},
		{"an empty disk is enough", own, func(*InstanceSpec) {}, "", ""},
		{"a system of its own runs its own", own, func(s *InstanceSpec) { s.Command = []string{"sh"} }, "spec.command", CodeUnsupported},
		{"and has its own kernel", own, func(s *InstanceSpec) { s.Machine.Kernel = "6.1" }, "spec.machine.kernel", CodeInvalid},
		{"Secure Boot needs UEFI", own, func(s *InstanceSpec) { s.Machine.SecureBoot = true }, "spec.machine.secureBoot", CodeInvalid},
		{"a boot order", own, func(s *InstanceSpec) { s.Machine.BootOrder = []string{"disk", "disk"} }, "spec.machine.bootOrder", CodeInvalid},
		{"a path of a medium", own, func(s *InstanceSpec) { s.Machine.ISO = "/a/../b.iso" }, "spec.machine.iso", CodeInvalid},
		{"a key", own, func(s *InstanceSpec) { s.Machine.CloudInit = &CloudInit{SSHKeys: []string{"hunter2"}} }, "spec.machine.cloudInit.sshKeys", CodeInvalid},
		{"a good key", own, func(s *InstanceSpec) {
			s.Machine.CloudInit = &CloudInit{SSHKeys: []string{"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJx= me@here", "ecdsa-sha2-nistp256 AAAA"}}
		}, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var s InstanceSpec
			c.base(&s)
			c.change(&s)
			err := s.Validate()
			var e *Error
			switch {
			case c.field == "" && err != nil:
				t.Error(err)
			case c.field != "" && (!errors.As(err, &e) || e.Field != c.field || e.Code != c.code):
				t.Errorf("%v, want %s of %s", err, c.code, c.field)
			}
		})
	}
}
