package api

import (
	"cmp"
	"fmt"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// nameRE is a DNS label (RFC 1035 §2.3.1, and RFC 1123 §2.1 for the leading
// digit), because names of instances are names in DNS.
// It is compiled on first use: compiled at start it would cost the agent of
// every guest 340 KiB of private memory.
var nameRE = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(NamePattern) })

// NamePattern is nameRE for the OpenAPI document.
const NamePattern = `^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`

// ValidateName checks the name of a resource. what is its kind, for the text.
func ValidateName(what, name string) error {
	if nameRE().MatchString(name) {
		return nil
	}
	return Errorf(CodeInvalid, "%q is not a valid name for %s", name, article(what)).WithField("name").
		WithHint("use 1 to 63 lower-case letters, digits and hyphens, with no hyphen at either end")
}

func article(what string) string {
	if strings.ContainsAny(what[:1], "aeio") {
		return "an " + what
	}
	return "a " + what
}

// ValidateLabels checks keys and values of labels.
func ValidateLabels(labels map[string]string) error {
	for k, v := range labels {
		if k == "" || len(k) > 128 || len(v) > 1024 || strings.ContainsAny(k, "= \n") {
			return invalid("labels", "label %q=%q is not valid", k, v).WithHint("keys have 1 to 128 characters without = and space, values at most 1024")
		}
	}
	return nil
}

func invalid(field, format string, args ...any) *Error {
	return Errorf(CodeInvalid, format, args...).WithField(field)
}

// Validate checks everything about the spec that needs no look at the host.
func (s *InstanceSpec) Validate() error {
	checks := []error{
		oneOf("spec.kind", string(s.Kind), "", "container", "pvm", "vm"),
		oneOf("spec.power", string(s.Power), "", "running", "stopped", "paused"),
		oneOf("spec.restart", string(s.Restart), "", "never", "on-failure", "always"),
		s.validateProcess(),
		s.Resources.Validate(),
		s.enoughMemory(),
		validateMounts(s.Mounts),
		validateNICs(s.NICs),
		validatePublish(s.Publish),
		s.validateSysctls(),
		validateUlimits(s.Ulimits),
		validateCapabilities(s.Security),
		s.validateMachine(),
	}
	if s.Image == "" && (s.Kind == "" || s.Kind == KindContainer) {
		checks = append(checks, invalid("spec.image", "no image given").WithHint("`cleave image list` shows those on this host; base needs no download"))
	}
	if s.Ephemeral && s.Restart != "" && s.Restart != RestartNever {
		checks = append(checks, invalid("spec.restart", "an instance that is deleted when it stops can't be restarted").WithHint("leave out --rm or --restart"))
	}
	if s.Root.Size < 0 || (s.Root.Size > 0 && s.Root.Size < 16*MiB) {
		checks = append(checks, invalid("spec.root.size", "a root disk of %s is too small", s.Root.Size).WithHint("give at least 16MiB"))
	}
	return firstError(checks)
}

func firstError(errs []error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func oneOf(field, value string, allowed ...string) error {
	if slices.Contains(allowed, value) {
		return nil
	}
	return invalid(field, "%q is not possible for %s", value, strings.TrimPrefix(field, "spec.")).
		WithHint("use one of %s", strings.Trim(strings.Join(allowed, ", "), ", "))
}

func (s *InstanceSpec) validateProcess() error {
	for k := range s.Env {
		if k == "" || strings.ContainsAny(k, "=\x00") {
			return invalid("spec.env", "%q can't be the name of an environment variable", k)
		}
	}
	for _, args := range [][]string{s.Entrypoint, s.Command} {
		for _, a := range args {
			if strings.Contains(a, "\x00") {
				return invalid("spec.command", "a NUL byte in %q", a)
			}
		}
	}
	if s.WorkDir != "" && !path.IsAbs(s.WorkDir) {
		return invalid("spec.workDir", "working directory %q is not absolute", s.WorkDir)
	}
	if s.Hostname != "" {
		for label := range strings.SplitSeq(s.Hostname, ".") {
			if !nameRE().MatchString(strings.ToLower(label)) || len(s.Hostname) > 64 {
				return invalid("spec.hostname", "%q is not a valid host name", s.Hostname)
			}
		}
	}
	if s.StopSeconds != nil && *s.StopSeconds < 0 {
		return invalid("spec.stopSeconds", "a stop can't take %d seconds", *s.StopSeconds)
	}
	return nil
}

// minPIDs is how many processes and threads a guest may have at the least: its
// agent has up to 10 threads, and needs a process for each command.
const minPIDs = 16

// Validate checks that the limits make sense together.
func (r *Resources) Validate() error {
	switch {
	case r.CPUs < 0 || (r.CPUs > 0 && r.CPUs < 0.01):
		return invalid("spec.resources.cpus", "%v CPUs can't be given", r.CPUs).WithHint("give 0.01 or more, or 0 for no limit")
	case r.CPUWeight < 0 || r.CPUWeight > 10000:
		return invalid("spec.resources.cpuWeight", "a CPU weight of %d is not between 1 and 10000", r.CPUWeight)
	case r.Memory < 0:
		return invalid("spec.resources.memory", "%s of memory can't be given", r.Memory)
	case r.MemorySoft < 0 || (r.Memory > 0 && r.MemorySoft > r.Memory):
		return invalid("spec.resources.memorySoft", "the soft limit %s is over the limit %s", r.MemorySoft, r.Memory)
	case r.Swap < 0 || (r.Swap > 0 && r.Memory == 0):
		return invalid("spec.resources.swap", "a swap limit needs a memory limit").WithHint("set memory too")
	case r.PIDs != 0 && r.PIDs < minPIDs:
		return invalid("spec.resources.pids", "%d processes and threads are too few: %d are the least, of which the guest's agent takes ten", r.PIDs, minPIDs)
	case min(r.DiskRead, r.DiskWrite, r.NetIn, r.NetOut) < 0 || min(r.DiskReadIO, r.DiskWriteO) < 0:
		return invalid("spec.resources", "a rate is negative")
	}
	if r.CPUSet != "" && !regexp.MustCompile(`^\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?)*$`).MatchString(r.CPUSet) {
		return invalid("spec.resources.cpuSet", "%q is not a list of CPUs", r.CPUSet).WithHint("write it like 0-3,6")
	}
	return nil
}

// enoughMemory: what a machine needs is for its engine to say.
func (s *InstanceSpec) enoughMemory() error {
	container := s.Kind == "" || s.Kind == KindContainer
	if m := s.Resources.Memory; container && m > 0 && m < 6*MiB {
		return invalid("spec.resources.memory", "%s of memory is too little to start anything", m).WithHint("give at least 6MiB, or 0 for no limit")
	}
	return nil
}

func validateMounts(mounts []Mount) error {
	seen := map[string]bool{}
	for i, m := range mounts {
		field := fmt.Sprintf("spec.mounts[%d]", i)
		switch {
		case (m.Volume == "") == (m.HostPath == ""):
			return invalid(field, "a mount needs either a volume or a host path")
		case m.HostPath != "" && (!path.IsAbs(m.HostPath) || path.Clean(m.HostPath) != m.HostPath):
			return invalid(field+".hostPath", "host path %q is not absolute and clean", m.HostPath)
		case !path.IsAbs(m.Target) || path.Clean(m.Target) != m.Target || m.Target == "/":
			return invalid(field+".target", "%q can't be mounted on", m.Target).WithHint("give an absolute path below /, without . and ..")
		case slices.Contains([]string{"/proc", "/sys", "/dev"}, "/"+strings.SplitN(m.Target, "/", 3)[1]):
			return invalid(field+".target", "%q belongs to the kernel's own file systems", m.Target)
		case seen[m.Target]:
			return invalid(field+".target", "two mounts on %q", m.Target)
		}
		seen[m.Target] = true
	}
	return nil
}

func validateNICs(nics []NIC) error {
	seen := map[string]bool{}
	if len(nics) > 8 {
		return invalid("spec.nics", "%d ports asked for, 8 are possible", len(nics))
	}
	for i, n := range nics {
		field := fmt.Sprintf("spec.nics[%d]", i)
		name := cmp.Or(n.Name, fmt.Sprintf("eth%d", i))
		if !regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_.-]{0,14}$`).MatchString(name) || name == "lo" || seen[name] {
			return invalid(field+".name", "%q can't be an interface name here", name)
		}
		seen[name] = true
		if a, err := netip.ParseAddr(n.IPv4); n.IPv4 != "" && (err != nil || !a.Is4()) {
			return invalid(field+".ipv4", "%q is not an IPv4 address", n.IPv4)
		}
		if a, err := netip.ParseAddr(n.IPv6); n.IPv6 != "" && (err != nil || !a.Is6()) {
			return invalid(field+".ipv6", "%q is not an IPv6 address", n.IPv6)
		}
		if n.MAC != "" && !regexp.MustCompile(`^[0-9a-fA-F][26aeAE](:[0-9a-fA-F]{2}){5}$`).MatchString(n.MAC) {
			return invalid(field+".mac", "%q is not a locally administered unicast MAC address", n.MAC).WithHint("write it like 02:00:00:12:34:56")
		}
	}
	return nil
}

func validatePublish(ps []Publish) error {
	seen := map[string]bool{}
	for i, p := range ps {
		field := fmt.Sprintf("spec.publish[%d]", i)
		if err := oneOf(field+".protocol", p.Protocol, "", "tcp", "udp"); err != nil {
			return err
		}
		if min(p.HostPort, p.GuestPort) < 1 || max(p.HostPort, p.GuestPort) > 65535 {
			return invalid(field, "port %d:%d is not between 1 and 65535", p.HostPort, p.GuestPort)
		}
		if _, err := netip.ParseAddr(p.HostIP); p.HostIP != "" && err != nil {
			return invalid(field+".hostIP", "%q is not an IP address", p.HostIP)
		}
		key := fmt.Sprintf("%s:%d/%s", p.HostIP, p.HostPort, cmp.Or(p.Protocol, "tcp"))
		if seen[key] {
			return invalid(field, "port %s is published twice", key)
		}
		seen[key] = true
	}
	return nil
}

// namespaced are the sysctls, or their prefixes, that the kernel keeps per
// IPC or network namespace; all others would change the host.
var namespaced = []string{"net.", "fs.mqueue.", "kernel.shm", "kernel.msg", "kernel.sem"}

// validateSysctls: a machine's kernel is its own, and so are all of its
// parameters.
func (s *InstanceSpec) validateSysctls() error {
	for k, v := range s.Sysctls {
		ok := s.Kind == KindPVM || s.Kind == KindVM || slices.ContainsFunc(namespaced, func(p string) bool { return strings.HasPrefix(k, p) })
		if !ok || strings.Contains(k, "/") || strings.Contains(k, "..") || strings.ContainsAny(v, "\n\x00") {
			return invalid("spec.sysctls", "sysctl %q is not one of the guest's own", k).WithHint("only net.*, fs.mqueue.*, kernel.shm*, kernel.msg* and kernel.sem belong to a container; --kind vm has all")
		}
	}
	return nil
}

var ulimits = []string{"as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack"}

func validateUlimits(m map[string]Ulimit) error {
	for k, u := range m {
		if !slices.Contains(ulimits, k) {
			return invalid("spec.ulimits", "%q is not a ulimit", k).WithHint("use one of %s", strings.Join(ulimits, ", "))
		}
		if u.Soft < -1 || u.Hard < -1 || (u.Hard != -1 && (u.Soft == -1 || u.Soft > u.Hard)) {
			return invalid("spec.ulimits", "ulimit %s: the soft limit %d is over the hard limit %d", k, u.Soft, u.Hard)
		}
	}
	return nil
}

func validateCapabilities(s Security) error {
	for _, c := range slices.Concat(s.AddCapabilities, s.DropCapabilities) {
		if !regexp.MustCompile(`^(CAP_)?[A-Z_]{3,24}$`).MatchString(c) {
			return invalid("spec.security", "%q is not a capability", c).WithHint("write it like NET_RAW")
		}
	}
	return nil
}
