package api

import (
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// validateMachine checks what only machines have, and what they can't have.
func (s *InstanceSpec) validateMachine() error {
	m := &s.Machine
	own := m.Firmware != "" || s.Image == ""
	if s.Kind == "" || s.Kind == KindContainer {
		return s.withoutMachine()
	}
	checks := []error{
		oneOf("spec.machine.arch", m.Arch, "", "amd64", "arm64", "riscv64"),
		oneOf("spec.machine.firmware", m.Firmware, "", "bios", "uefi"),
		oneOf("spec.machine.accel", m.Accel, "", "kvm", "tcg"),
		oneOf("spec.machine.engine", m.Engine, "", "qemu", "vmm"),
		m.validateBootOrder(),
		m.validateMedium(),
		m.CloudInit.validate(),
	}
	switch {
	case m.BootSeconds != nil && *m.BootSeconds < 0:
		checks = append(checks, invalid("spec.machine.bootSeconds", "a boot can't take %d seconds", *m.BootSeconds).WithHint("0 is never"))
	case m.Kernel != "" && !kernelRE().MatchString(m.Kernel):
		checks = append(checks, invalid("spec.machine.kernel", "%q can't be the name of a kernel", m.Kernel).WithHint("`cleave kernel list` shows those that there are"))
	case m.Kernel != "" && own:
		checks = append(checks, invalid("spec.machine.kernel", "a system that firmware boots has its own kernel").WithHint("leave out --kernel, or --boot"))
	case m.Engine != "" && s.Kind != KindVM:
		checks = append(checks, Errorf(CodeUnsupported, "kind %s has one engine, and none to choose", s.Kind).WithField("spec.machine.engine").WithHint("use --kind vm"))
	case m.SecureBoot && m.Firmware != "uefi":
		checks = append(checks, invalid("spec.machine.secureBoot", "Secure Boot is a part of UEFI").WithHint("use --boot uefi"))
	}
	if s.Kind == KindPVM && m.Accel != "" {
		checks = append(checks, Errorf(CodeUnsupported, "kind pvm has no accelerator to choose: its kernel runs as a process of the host's").
			WithField("spec.machine.accel").WithHint("use --kind vm, or leave it out"))
	}
	if own {
		checks = append(checks, s.ownSystem())
	} else {
		checks = append(checks, m.onlyFirmware(), s.nothingToAdd())
	}
	return firstError(checks)
}

// withoutMachine refuses for a container what only a machine has.
func (s *InstanceSpec) withoutMachine() error {
	m := &s.Machine
	for _, x := range []struct {
		field string
		given bool
	}{
		{"arch", m.Arch != ""},
		{"kernel", m.Kernel != ""},
		{"firmware", m.Firmware != ""},
		{"secureBoot", m.SecureBoot},
		{"tpm", m.TPM},
		{"iso", m.ISO != ""},
		{"bootOrder", len(m.BootOrder) > 0},
		{"accel", m.Accel != ""},
		{"engine", m.Engine != ""},
		{"cloudInit", m.CloudInit != nil},
		{"bootSeconds", m.BootSeconds != nil},
	} {
		if x.given {
			return Errorf(CodeUnsupported, "a container has no %s: it runs on the host's kernel and hardware", x.field).
				WithField("spec.machine." + x.field).WithHint("use --kind vm")
		}
	}
	return nil
}

// onlyFirmware refuses for an image that the host's kernel boots what only
// a system of its own can use.
func (m *Machine) onlyFirmware() error {
	for _, x := range []struct {
		field string
		given bool
	}{
		{"secureBoot", m.SecureBoot},
		{"tpm", m.TPM},
		{"iso", m.ISO != ""},
		{"bootOrder", len(m.BootOrder) > 0},
		{"cloudInit", m.CloudInit != nil},
		{"bootSeconds", m.BootSeconds != nil},
	} {
		if x.given {
			return Errorf(CodeUnsupported, "%s is for systems of their own; an image is booted by a kernel of the host", x.field).
				WithField("spec.machine." + x.field).WithHint("boot a disk: `cleave image import` takes one, --boot uefi or --boot bios starts it")
		}
	}
	return nil
}

// nothingToAdd refuses capabilities that root of a machine has anyway: its
// kernel is its own, and only what was dropped is missing.
func (s *InstanceSpec) nothingToAdd() error {
	sec := s.Security
	dropped := func(name string) bool {
		return slices.ContainsFunc(sec.DropCapabilities, func(d string) bool {
			return strings.EqualFold(d, "ALL") || strings.EqualFold(strings.TrimPrefix(strings.ToUpper(d), "CAP_"), name)
		})
	}
	for _, c := range sec.AddCapabilities {
		if name := strings.TrimPrefix(strings.ToUpper(c), "CAP_"); !dropped(name) {
			return Errorf(CodeUnsupported, "there is no capability %s to add: root in a guest of kind %s has all of its own kernel", name, s.Kind).
				WithField("spec.security.addCapabilities").WithHint("leave it out, drop ALL before (--cap-drop ALL), or use --kind container, whose guests have few")
		}
	}
	return nil
}

// ownSystem refuses what can't be done to a system that isn't an image: it
// knows itself what it runs.
func (s *InstanceSpec) ownSystem() error {
	for _, x := range []struct {
		field string
		given bool
	}{
		{"entrypoint", s.Entrypoint != nil},
		{"command", s.Command != nil},
		{"env", len(s.Env) > 0},
		{"user", s.User != ""},
		{"workDir", s.WorkDir != ""},
		{"stdin", s.Stdin},
		{"init", s.Init != nil},
		{"sysctls", len(s.Sysctls) > 0},
		{"ulimits", len(s.Ulimits) > 0},
		{"shmSize", s.ShmSize != 0},
		{"stopSignal", s.StopSignal != ""},
		{"resources.pids", s.Resources.PIDs != 0},
		{"security.readOnlyRoot", s.Security.ReadOnlyRoot},
		{"security.noNewPrivileges", s.Security.NoNewPrivileges},
		{"security", len(s.Security.AddCapabilities)+len(s.Security.DropCapabilities) > 0},
	} {
		if x.given {
			return Errorf(CodeUnsupported, "%s can't be set from outside in a system of its own", x.field).WithField("spec." + x.field).
				WithHint("set it inside, by --user-data or `cleave exec`")
		}
	}
	return nil
}

func (m *Machine) validateBootOrder() error {
	for i, d := range m.BootOrder {
		if !slices.Contains([]string{"disk", "cdrom", "network"}, d) || slices.Contains(m.BootOrder[:i], d) {
			return invalid("spec.machine.bootOrder", "%q is no boot order", strings.Join(m.BootOrder, ",")).
				WithHint("name disk, cdrom and network, each at most once")
		}
	}
	return nil
}

func (m *Machine) validateMedium() error {
	if path.IsAbs(m.ISO) && path.Clean(m.ISO) != m.ISO || strings.ContainsAny(m.ISO, "\x00\n") {
		return invalid("spec.machine.iso", "%q is neither an image nor a clean absolute path", m.ISO)
	}
	return nil
}

// sshKeyRE is what an authorized_keys line begins with (sshd(8)).
var sshKeyRE = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(sk-)?(ssh|ecdsa)-[a-z0-9@.-]+ [A-Za-z0-9+/=]+( [^\n]*)?$`)
})

const maxUserData = 1 * MiB

func (c *CloudInit) validate() error {
	if c == nil {
		return nil
	}
	for _, k := range c.SSHKeys {
		if !sshKeyRE().MatchString(k) {
			return invalid("spec.machine.cloudInit.sshKeys", "%.40q is not a public key of SSH", k).WithHint("it is one line, like those of ~/.ssh/*.pub")
		}
	}
	for field, text := range map[string]string{"userData": c.UserData, "networkConfig": c.NetworkConfig} {
		if Bytes(len(text)) > maxUserData {
			return invalid("spec.machine.cloudInit."+field, "%s of it are more than %s", Bytes(len(text)), maxUserData)
		}
	}
	return nil
}
