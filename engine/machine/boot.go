package machine

import (
	"net/netip"
	"strings"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/internal/validate"
	"github.com/cleave-project/cleave/engine/machine/vitals"
)

// leastMemory is less than any kernel boots in; monitors know better.
const leastMemory = 16 * api.MiB

// validate checks what this engine and its monitor can, and translates what
// is asked.
func (e *Engine) validate(s *engine.Spec) (set settings, err error) {
	if err := validate.Spec(s); err != nil {
		return set, err
	}
	m := s.Machine
	if m == nil || m.CPUs < 1 || m.Memory <= 0 || (m.Firmware.Type == "") == (m.Kernel.Image == "") {
		return set, api.Errorf(api.CodeInternal, "start %s: it is not said what its machine is made of", s.Name)
	}
	for _, mnt := range s.Mounts {
		if !mnt.Disk {
			return set, api.Errorf(api.CodeUnsupported, "start %s: %s at %s is a tree of files, and a guest with a kernel of its own mounts disks only", s.Name, mnt.Source, mnt.Target).
				WithField("spec.mounts").WithHint("use a volume of type disk, or kind container")
		}
	}
	cpus, memory := validate.HostSize()
	if m.CPUs > cpus {
		return set, api.Errorf(api.CodeNoResources, "%d CPUs are more than the %d of this host", m.CPUs, cpus).WithField("spec.resources.cpus")
	}
	if m.Memory > memory {
		return set, api.Errorf(api.CodeNoResources, "%s of memory are more than the %s of this host", m.Memory, memory).WithField("spec.resources.memory")
	}
	if err := validate.Resources(s.Resources, leastMemory); err != nil {
		return set, err
	}
	if m.Firmware.Type == "" {
		if set, err = imageSettings(s); err != nil {
			return set, err
		}
	}
	return set, e.monitor.Validate(s)
}

// imageSettings checks what only a guest made of an image has.
func imageSettings(s *engine.Spec) (set settings, err error) {
	if err := validate.Entry(s); err != nil {
		return set, err
	}
	if set.sysctls, err = validate.Sysctls(s.Sysctls); err != nil {
		return set, err
	}
	if set.rlimits, err = validate.Rlimits(s.Ulimits); err != nil {
		return set, err
	}
	set.drop, err = validate.Dropped(s.Security)
	return set, err
}

// boot is what the guest's first process is told.
func (l *launch) boot() *vitals.Boot {
	s := l.spec
	b := &vitals.Boot{
		Hostname: s.Hostname, System: s.System, Maintenance: s.Maintenance,
		ReadOnlyRoot: s.Root.ReadOnly || s.Security.ReadOnlyRoot,
		Process: vitals.Process{
			Args: s.Proc.Args, Env: s.Proc.Env, User: s.Proc.User, WorkDir: s.Proc.WorkDir, TTY: s.Proc.TTY, Stdin: s.Proc.Stdin,
		},
		Hosts: s.Hosts, Resolv: s.Resolv, Sysctls: l.set.sysctls, ShmSize: int64(s.ShmSize),
		PIDs: pids(s.Resources.PIDs, s.System), DropCaps: l.set.drop, NoNewPrivs: s.Security.NoNewPrivileges,
	}
	if b.ShmSize == 0 {
		b.ShmSize = int64(64 * api.MiB)
	}
	if s.Machine.Kernel.Modules != "" {
		b.Modules = s.Machine.Kernel.Version
	}
	for _, r := range l.set.rlimits {
		b.Limits = append(b.Limits, vitals.Rlimit{Resource: r.Resource, Soft: r.Soft, Hard: r.Hard})
	}
	for i, m := range s.Mounts {
		b.Mounts = append(b.Mounts, vitals.Mount{Disk: DiskName(RoleVolume, i), Target: m.Target, ReadOnly: m.ReadOnly})
	}
	for _, n := range s.NICs {
		b.NICs = append(b.NICs, nic(n))
	}
	return b
}

func nic(n engine.NIC) vitals.NIC {
	out := vitals.NIC{Name: n.Name, MAC: n.MAC.String(), MTU: n.MTU}
	for _, p := range []netip.Prefix{n.IPv4, n.IPv6} {
		if p.IsValid() {
			out.Prefixes = append(out.Prefixes, p)
		}
	}
	for _, a := range []netip.Addr{n.Gateway4, n.Gateway6} {
		if a.IsValid() {
			out.Gateways = append(out.Gateways, a)
		}
	}
	return out
}

// printable is the end of a guest's output, fit to be shown.
func printable(out []byte) string {
	text := strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\r':
			return '\n'
		case r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0:
			return -1
		}
		return r
	}, strings.ToValidUTF8(string(out), "?"))
	lines := strings.FieldsFunc(text, func(r rune) bool { return r == '\n' })
	text = strings.Join(lines, " | ")
	return strings.ToValidUTF8(text[max(0, len(text)-lastOutput):], "")
}
