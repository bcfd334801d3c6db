package api

import (
	"path"
	"regexp"
	"strings"
	"sync"
)

var kernelRE = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(KernelPattern) })

// KernelPattern is what kernels can be named: as their releases are.
const KernelPattern = `^[A-Za-z0-9][A-Za-z0-9._+~-]{0,79}$`

// ValidateKernelName checks the name of a kernel.
func ValidateKernelName(name string) error {
	if kernelRE().MatchString(name) {
		return nil
	}
	return invalid("name", "%q is not a valid name for a kernel", name).
		WithHint("use up to 80 letters, digits and . _ + ~ -, with a letter or digit first")
}

// Validate checks everything that needs no look at the host.
func (k *KernelAdd) Validate() error {
	var name error
	if k.Name != "" {
		name = ValidateKernelName(k.Name)
	}
	checks := []error{name, oneOf("kind", string(k.Kind), "", "pvm", "vm")}
	switch {
	case k.Image == "":
		checks = append(checks, invalid("image", "no kernel given").WithHint("give a .deb package, a kernel's file, or host"))
	case k.Image == KernelOfHost && k.Modules != "":
		checks = append(checks, invalid("modules", "the running kernel's modules are known"))
	case k.Image != KernelOfHost && !path.IsAbs(k.Image):
		checks = append(checks, invalid("image", "%q is not an absolute path", k.Image))
	case k.Modules != "" && !path.IsAbs(k.Modules):
		checks = append(checks, invalid("modules", "%q is not an absolute path", k.Modules))
	case strings.ContainsRune(k.Image+k.Modules, 0):
		checks = append(checks, invalid("image", "a NUL byte in a path"))
	}
	return firstError(checks)
}

// KernelOfHost is KernelAdd.Image for the running kernel.
const KernelOfHost = "host"

// Validate checks everything that needs no look at the host.
func (k *KernelFetch) Validate() error {
	return firstError([]error{
		oneOf("distribution", k.Distribution, "debian"),
		oneOf("kind", string(k.Kind), "", "pvm", "vm"),
		oneOf("arch", k.Arch, "", "amd64", "arm64", "riscv64"),
	})
}
