package boot

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine/internal/nic"
)

// network finds the interfaces and configures them.
func (m *machine) network() error {
	names := make(map[string]string)
	nics := make([]nic.NIC, len(m.boot.NICs))
	for i, n := range m.boot.NICs {
		name := m.events.until(deviceGrace, func() string { return nicByMAC(n.MAC) })
		if name == "" {
			return api.Errorf(api.CodeUnavailable, "find the interface %s: the machine has none with the address %s", n.Name, n.MAC)
		}
		names[name] = n.Name
		nics[i] = nic.NIC{Name: n.Name, MTU: n.MTU, Prefixes: n.Prefixes, Gateways: n.Gateways}
	}
	if err := nic.Rename(names); err != nil {
		return err
	}
	return nic.Configure(nics, m.sysctl)
}

func (m *machine) sysctl(name, value string) error {
	return os.WriteFile(path.Join("/proc/sys", path.Clean("/"+name)), []byte(value), 0)
}

// limit sets kernel settings and what everything in the guest inherits.
func (m *machine) limit() error {
	for _, s := range m.boot.Sysctls {
		if err := m.sysctl(s[0], s[1]); err != nil {
			return api.Errorf(api.CodeInvalid, "set sysctl %s: %w", strings.ReplaceAll(s[0], "/", "."), err).WithField("spec.sysctls")
		}
	}
	for _, l := range m.boot.Limits {
		// This call, and not prlimit(2), because the runtime puts back its
		// own idea of RLIMIT_NOFILE in children unless it saw a change.
		if err := syscall.Setrlimit(l.Resource, &syscall.Rlimit{Cur: l.Soft, Max: l.Hard}); err != nil {
			return fmt.Errorf("set resource limit %d to %d:%d: %w", l.Resource, l.Soft, l.Hard, err)
		}
	}
	if m.boot.PIDs > 0 && m.boot.System {
		return m.limitThreads()
	}
	return nil
}

// limitThreads bounds the threads of a system, whose init moves everything
// to cgroups as it likes, by the kernel's own bound. The kernel's threads,
// which count too, are allowed on top.
func (m *machine) limitThreads() error {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return err
	}
	// "0.00 0.00 0.00 RUNNING/ALL LAST" (proc(5)).
	fields := strings.Fields(string(b))
	all := 0
	if len(fields) > 3 {
		_, text, _ := strings.Cut(fields[3], "/")
		all, _ = strconv.Atoi(text)
	}
	if err := m.sysctl("kernel/threads-max", strconv.FormatInt(m.boot.PIDs+int64(all), 10)); err != nil {
		return fmt.Errorf("limit processes and threads: %w", err)
	}
	return nil
}

// Of an application guest: where what the guest runs is, beside us.
const guestCgroup = "/sys/fs/cgroup/guest"

// cgroup makes the group of all that an application guest runs.
func (m *machine) cgroup() (*os.File, error) {
	if m.boot.PIDs <= 0 {
		return nil, nil
	}
	err := os.WriteFile("/sys/fs/cgroup/cgroup.subtree_control", []byte("+pids"), 0)
	if err == nil {
		err = os.Mkdir(guestCgroup, 0o755)
	}
	if err == nil || errors.Is(err, os.ErrExist) {
		err = os.WriteFile(guestCgroup+"/pids.max", []byte(strconv.FormatInt(m.boot.PIDs, 10)), 0)
	}
	var f *os.File
	if err == nil {
		f, err = os.Open(guestCgroup)
	}
	if err != nil {
		return nil, fmt.Errorf("limit processes and threads: %w", err)
	}
	return f, nil
}

// withhold takes from all that is executed from now on what the guest isn't
// to have. This process keeps its own rights, which it needs to the end.
func (m *machine) withhold() error {
	for c := range uintptr(64) {
		if m.boot.DropCaps&(1<<c) == 0 {
			continue
		}
		_, _, e := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0)
		if e != 0 && e != unix.EINVAL { // a capability that the kernel doesn't know
			return fmt.Errorf("withhold capability %d: %w", c, e)
		}
	}
	if m.boot.NoNewPrivs {
		if _, _, e := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); e != 0 {
			return fmt.Errorf("set no_new_privs: %w", e)
		}
	}
	return nil
}
