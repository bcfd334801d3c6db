package validate

import (
	"slices"
	"strings"
	"sync"

	"github.com/moby/sys/capability"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
)

// Capabilities count inside the guest's own user namespace only.
var (
	// appCaps are those that container tools agree on.
	appCaps = []string{
		"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
		"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
	}
	// systemCaps are what an operating system does in its own namespaces
	// besides: mounts, network, cgroups, its own processes. Not among them
	// is what concerns the one kernel: modules, raw I/O, the clock, its log.
	systemCaps = append([]string{
		"CAP_DAC_READ_SEARCH", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_LEASE", "CAP_LINUX_IMMUTABLE", "CAP_NET_ADMIN",
		"CAP_NET_BROADCAST", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_PTRACE", "CAP_SYS_RESOURCE",
		"CAP_SYS_TTY_CONFIG",
	}, appCaps...)
)

// Capabilities is a guest's bounding set, sorted.
func Capabilities(spec *engine.Spec) ([]string, error) {
	set := slices.Clone(appCaps)
	if spec.System {
		set = slices.Clone(systemCaps)
	}
	for _, name := range spec.Security.DropCapabilities {
		if strings.EqualFold(name, "ALL") {
			set = nil
			continue
		}
		c, err := capName(name, "spec.security.dropCapabilities")
		if err != nil {
			return nil, err
		}
		set = slices.DeleteFunc(set, func(s string) bool { return s == c })
	}
	for _, name := range spec.Security.AddCapabilities {
		c, err := capName(name, "spec.security.addCapabilities")
		if err != nil {
			return nil, err
		}
		set = append(set, c)
	}
	slices.Sort(set)
	return slices.Compact(set), nil
}

// capName is a capability's full name.
func capName(name, field string) (string, error) {
	full := strings.ToUpper(name)
	if !strings.HasPrefix(full, "CAP_") {
		full = "CAP_" + full
	}
	if _, ok := capNumbers()[full]; !ok {
		return "", api.Errorf(api.CodeInvalid, "%q is no capability", name).WithField(field).
			WithHint("write a name like NET_ADMIN; capabilities(7) lists them")
	}
	return full, nil
}

var capNumbers = sync.OnceValue(func() map[string]int {
	m := map[string]int{}
	for _, c := range capability.ListKnown() {
		m["CAP_"+strings.ToUpper(c.String())] = int(c)
	}
	return m
})

// CapMask is the set as a bit mask.
func CapMask(names []string) uint64 {
	var m uint64
	for _, n := range names {
		m |= 1 << capNumbers()[n]
	}
	return m
}

// Dropped are the capabilities that a guest with a kernel of its own is not
// to have: there, root's rights are nobody else's matter, and only what was
// asked to be dropped goes.
func Dropped(s api.Security) (uint64, error) {
	var drop uint64
	for _, name := range s.DropCapabilities {
		if strings.EqualFold(name, "ALL") {
			for _, n := range capNumbers() {
				drop |= 1 << n
			}
			continue
		}
		c, err := capName(name, "spec.security.dropCapabilities")
		if err != nil {
			return 0, err
		}
		drop |= CapMask([]string{c})
	}
	for _, name := range s.AddCapabilities {
		c, err := capName(name, "spec.security.addCapabilities")
		if err != nil {
			return 0, err
		}
		drop &^= CapMask([]string{c})
	}
	return drop, nil
}
