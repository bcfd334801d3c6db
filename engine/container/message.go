package container

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/container/setup"
	"github.com/cleave-project/cleave/engine/internal/validate"
)

// message is what setup is told.
func (l *launch) message() *setup.Spec {
	s := l.spec
	withheld, surplus := l.withheld()
	m := &setup.Spec{
		Hostname: s.Hostname, System: s.System,
		ReadOnlyRoot: s.Root.ReadOnly || s.Security.ReadOnlyRoot,
		Files:        l.files, Terminal: s.Proc.TTY, ShmSize: int64(s.ShmSize),
		Sysctls: l.set.sysctls, Limits: l.rlimits,
		Capabilities: validate.CapMask(l.set.caps) | withheld | surplus,
		NoNewPrivs:   s.Security.NoNewPrivileges, Seccomp: l.set.filter,
	}
	if m.ShmSize == 0 {
		m.ShmSize = int64(64 * api.MiB)
	}
	for i, mnt := range s.Mounts {
		m.Mounts = append(m.Mounts, setup.Mount{Target: mnt.Target, Dir: isDir(l.mounts[i]), Clone: mnt.ReadOnly && l.mayMount()})
	}
	for _, h := range l.group.Hierarchies() {
		// The guest owns its version 2 subtree; version 1 is for looking at.
		m.Cgroups = append(m.Cgroups, setup.Cgroup{Name: h.Name, V2: h.V2, Options: h.Options, Write: s.System && h.V2})
	}
	for _, n := range s.NICs {
		m.NICs = append(m.NICs, nicOf(n))
	}
	return m
}

// entry is what setup executes.
func (l *launch) entry() *setup.Entry {
	p := l.spec.Proc
	e := &setup.Entry{
		Process: setup.Process{Args: p.Args, Env: p.Env, User: p.User, WorkDir: p.WorkDir, TTY: p.TTY},
		System:  l.spec.System,
	}
	e.Withheld, e.Surplus = l.withheld()
	return e
}

// withheld are the capabilities that only our PID 1 has, and what it takes to
// keep them from others.
func (l *launch) withheld() (mask, surplus uint64) {
	caps := validate.CapMask(l.set.caps)
	if mask = validate.CapMask(agentCaps) &^ caps; l.spec.System || mask == 0 {
		return 0, 0
	}
	return mask, 1 << unix.CAP_SETPCAP &^ caps
}

func isDir(f *os.File) bool {
	st, err := f.Stat()
	return err == nil && st.IsDir()
}

func nicOf(n engine.NIC) setup.NIC {
	out := setup.NIC{Name: n.Name, MTU: n.MTU}
	if n.IPv4.IsValid() {
		out.Prefixes = append(out.Prefixes, n.IPv4)
	}
	if n.IPv6.IsValid() {
		out.Prefixes = append(out.Prefixes, n.IPv6)
	}
	if n.Gateway4.IsValid() {
		out.Gateways = append(out.Gateways, n.Gateway4)
	}
	if n.Gateway6.IsValid() {
		out.Gateways = append(out.Gateways, n.Gateway6)
	}
	return out
}
