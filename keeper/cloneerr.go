package keeper

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// namespaces are the kinds, by their names in /proc/PID/ns and in the
// limits of /proc/sys/user.
var namespaces = []struct {
	flag        uintptr
	name, limit string
}{
	{unix.CLONE_NEWUSER, "user", "max_user_namespaces"},
	{unix.CLONE_NEWNS, "mnt", "max_mnt_namespaces"},
	{unix.CLONE_NEWPID, "pid", "max_pid_namespaces"},
	{unix.CLONE_NEWNET, "net", "max_net_namespaces"},
	{unix.CLONE_NEWIPC, "ipc", "max_ipc_namespaces"},
	{unix.CLONE_NEWUTS, "uts", "max_uts_namespaces"},
	{unix.CLONE_NEWCGROUP, "cgroup", "max_cgroup_namespaces"},
	{unix.CLONE_NEWTIME, "time", "max_time_namespaces"},
}

const cloneFlags = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET |
	unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWTIME

// cloneError says what the errno of a clone, of the child's own steps, or of
// its exec stands for (clone(2), user_namespaces(7), execve(2)). The kernel
// doesn't tell which step it was; the state of the host often does.
func cloneError(err error, r *startMessage) *api.Error {
	var kinds []string
	for _, ns := range namespaces {
		if r.Clone&ns.flag == 0 {
			continue
		}
		kinds = append(kinds, ns.name)
		if _, serr := os.Stat("/proc/self/ns/" + ns.name); errors.Is(serr, os.ErrNotExist) {
			return api.Errorf(api.CodeUnsupported, "clone: this kernel has no %s namespaces: %w", ns.name, err).
				WithHint("a kernel with them is needed")
		}
		if limit, rerr := os.ReadFile("/proc/sys/user/" + ns.limit); rerr == nil && strings.TrimSpace(string(limit)) == "0" {
			return api.Errorf(api.CodeUnsupported, "clone: %s namespaces are turned off on this host: %w", ns.name, err).
				WithHint("sysctl -w user.%s=65536", ns.limit)
		}
	}
	with := "without new namespaces"
	if len(kinds) > 0 {
		with = fmt.Sprintf("with new %s namespaces", strings.Join(kinds, ", "))
	}
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EUSERS):
		return api.Errorf(api.CodeNoResources, "clone %s: a limit on namespaces is reached: %w", with, err).
			WithHint("see the limits in /proc/sys/user, and how deep this host's own namespaces are nested")
	case errors.Is(err, unix.EAGAIN):
		return api.Errorf(api.CodeNoResources, "clone %s: a limit on processes is reached: %w", with, err).
			WithHint("see kernel.pid_max, kernel.threads-max, and pids.max of the guest's cgroup and of the keeper's (at least 2 are needed)")
	case errors.Is(err, unix.ENOMEM):
		return api.Errorf(api.CodeNoResources, "clone %s: out of memory: %w", with, err).
			WithHint("raise the guest's memory limit, or free memory on the host")
	case errors.Is(err, unix.EPERM):
		return api.Errorf(api.CodeForbidden, "clone %s: not permitted: %w", with, err).
			WithHint("the keeper must run as root with all capabilities; check kernel.unprivileged_userns_clone, security modules, and that the id maps lie within the keeper's own")
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENODEV), errors.Is(err, unix.EBADF):
		return api.Errorf(api.CodeConflict, "clone into the given cgroup: it is no cgroup v2 directory, is gone, or may hold no processes: %w", err)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EACCES), errors.Is(err, unix.ENOEXEC),
		errors.Is(err, unix.ELIBBAD), errors.Is(err, unix.ETXTBSY), errors.Is(err, unix.E2BIG):
		return api.Errorf(api.CodeInvalid, "execute %q: %w", r.Args[0], err)
	case errors.Is(err, unix.EINVAL):
		return api.Errorf(api.CodeInvalid, "clone %s: %w", with, err).
			WithHint("a new user namespace needs id maps that contain 0 and don't overlap")
	}
	return api.Errorf(api.CodeInternal, "clone %s: %w", with, err)
}
