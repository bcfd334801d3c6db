package container

import (
	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/container/setup"
	"github.com/cleave-project/cleave/engine/internal/cgroup"
	"github.com/cleave-project/cleave/engine/internal/validate"
)

// settings are what is asked for a guest, checked and translated.
type settings struct {
	caps    []string // bounding set
	filter  []byte
	sysctls [][2]string
	rlimits []validate.Rlimit
}

// minMemory holds the agent and a small program.
const minMemory = 6 * api.MiB

// validate checks what only this engine can, and translates what is asked.
func (e *Engine) validate(s *engine.Spec) (set settings, err error) {
	if err := validate.Spec(s); err != nil {
		return set, err
	}
	if err := validate.Entry(s); err != nil {
		return set, err
	}
	if set.sysctls, err = validate.Sysctls(s.Sysctls); err != nil {
		return set, err
	}
	if set.rlimits, err = validate.Rlimits(s.Ulimits); err != nil {
		return set, err
	}
	if err := validate.Resources(s.Resources, minMemory); err != nil {
		return set, err
	}
	if set.caps, err = validate.Capabilities(s); err != nil {
		return set, err
	}
	if (s.Root.ReadOnly || s.Security.ReadOnlyRoot) && mayMount(set.caps) {
		return set, api.Errorf(api.CodeUnsupported, "start %s: a guest with CAP_SYS_ADMIN, as every system guest is, could make its read-only root writable again", s.Name).
			WithField("spec.security.readOnlyRoot").WithHint("run it without that capability, or with a writable root")
	}
	set.filter, err = e.filters.get(set.caps)
	return set, err
}

// limits completes resources for the cgroup: defaults, and the devices that
// I/O limits are for.
func (e *Engine) limits(r api.Resources, root string, system bool) cgroup.Limits {
	l := cgroup.Limits{Resources: r, Together: !system}
	if l.PIDs == 0 {
		l.PIDs = 4096
		if system {
			l.PIDs = 32768
		}
	}
	l.Devices = cgroup.BlockDevices(root)
	return l
}

// setRlimits sets a guest's resource limits from outside, where a hard limit
// can be raised, and returns them for setup. On a host where root may not
// raise limits, defaults stay at what the host has.
func setRlimits(pid int, limits []validate.Rlimit) ([]setup.Rlimit, error) {
	var out []setup.Rlimit
	for _, l := range limits {
		r := setup.Rlimit{Resource: l.Resource, Soft: l.Soft, Hard: l.Hard}
		err := unix.Prlimit(pid, r.Resource, &unix.Rlimit{Cur: r.Soft, Max: r.Hard}, nil)
		if err == unix.EPERM && !l.Asked {
			var now unix.Rlimit
			if err = unix.Prlimit(pid, r.Resource, nil, &now); err == nil {
				r.Hard = min(r.Hard, now.Max)
				r.Soft = min(r.Soft, r.Hard)
				err = unix.Prlimit(pid, r.Resource, &unix.Rlimit{Cur: r.Soft, Max: r.Hard}, nil)
			}
		}
		if err != nil {
			return nil, api.Errorf(api.CodeInvalid, "set resource limit %s to %d:%d: %w", l.Name, int64(l.Soft), int64(l.Hard), err).
				WithField("spec.ulimits").WithHint("stay below the host's own limits: fs.nr_open, and the daemon's if it lacks CAP_SYS_RESOURCE")
		}
		out = append(out, r)
	}
	return out, nil
}
