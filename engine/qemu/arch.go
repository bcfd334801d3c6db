package qemu

import (
	"slices"

	"github.com/cleave-project/cleave/api"
)

// arch is how QEMU plays machines of an architecture.
type arch struct {
	name    string    // as Go names it
	program string    // below /usr/bin
	pkg     string    // Debian's package with it
	machine string    // for an image; the devices that are not wanted are off
	cpu     string    // the best that translation has
	console string    // the kernel's name of the first serial port
	args    string    // for the kernel's command line
	memory  api.Bytes // less than which Debian's kernel doesn't come up with; minMemory if 0
}

// archs are those that images can be for.
//
// On amd64 the machine is microvm: it boots without firmware to speak of, in a
// third of the time that q35 takes. Its PCI is as fast as its virtio-mmio (to
// init in 1.3 s of translation either way), and has ports that devices can be
// plugged into. Their events come only where the kernel doesn't ask ACPI, in
// whose tables for this machine there is no answer (pcie_ports=native). One
// serial port is there, not the 32 that Debian's kernel looks for; no check of
// the timer's interrupt is needed with the only kind there is; tests of the
// kernel's cryptography take 0.35 s of the CPU time of a translated boot, and a
// fifth level of page tables 0.05.
var archs = []arch{
	{
		name: "amd64", program: "qemu-system-x86_64", pkg: "qemu-system-x86",
		machine: "microvm,pcie=on,acpi=on,mem-merge=off,dump-guest-core=off", cpu: "max,la57=off", console: "ttyS0",
		args: "8250.nr_uarts=1 no_timer_check tsc=reliable pcie_ports=native cryptomgr.notests",
	},
	{
		// The signatures of pointers as the architecture has them take longer
		// to compute than all else that a boot does; any others will do.
		name: "arm64", program: "qemu-system-aarch64", pkg: "qemu-system-arm",
		machine: "virt,gic-version=max,mem-merge=off,dump-guest-core=off", cpu: "max,pauth-impdef=on", console: "ttyAMA0",
	},
	{
		name: "riscv64", program: "qemu-system-riscv64", pkg: "qemu-system-misc",
		machine: "virt,mem-merge=off,dump-guest-core=off", cpu: "rv64", console: "ttyS0",
		memory: 128 * api.MiB, // 128 do, 96 do not: its kernel is one for all computers
	},
}

func archNamed(name string) (arch, error) {
	i := slices.IndexFunc(archs, func(a arch) bool { return a.name == name })
	if i < 0 {
		return arch{}, api.Errorf(api.CodeUnsupported, "virtual machines of architecture %q are not supported", name).
			WithField("spec.machine.arch").WithHint("use amd64, arm64 or riscv64")
	}
	return archs[i], nil
}
