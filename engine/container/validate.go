package container

import (
	"errors"
	"maps"
	"os"
	"path"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/container/setup"
	"github.com/cleave-project/cleave/engine/internal/cgroup"
	"github.com/cleave-project/cleave/engine/internal/guests"
)

// validate checks what only this engine can, and translates what is asked.
func (e *Engine) validate(s *engine.Spec) (caps []string, filter []byte, err error) {
	if !guests.IDPattern.MatchString(s.ID) {
		return nil, nil, api.Errorf(api.CodeInvalid, "%q is no instance id", s.ID)
	}
	if len(s.Proc.Args) == 0 || s.Proc.Args[0] == "" {
		return nil, nil, api.Errorf(api.CodeInvalid, "start %s: neither the image nor the instance names a program to run", s.Name).
			WithField("spec.entrypoint").WithHint("give a command")
	}
	if s.UIDBase == 0 || s.IDCount < 1000 {
		return nil, nil, api.Errorf(api.CodeInternal, "start %s: ids %d+%d are no range of its own", s.Name, s.UIDBase, s.IDCount)
	}
	for _, m := range s.Mounts {
		if err := checkTarget(m.Target); err != nil {
			return nil, nil, err
		}
	}
	for name := range s.Sysctls {
		if err := checkSysctl(name); err != nil {
			return nil, nil, err
		}
	}
	for name := range s.Ulimits {
		if _, ok := rlimitNumbers[name]; !ok {
			return nil, nil, api.Errorf(api.CodeInvalid, "%q is no resource limit", name).WithField("spec.ulimits").
				WithHint("one of: %s", strings.Join(slices.Sorted(maps.Keys(rlimitNumbers)), ", "))
		}
	}
	if err := e.checkResources(s.Resources); err != nil {
		return nil, nil, err
	}
	if caps, err = capabilities(s); err != nil {
		return nil, nil, err
	}
	if (s.Root.ReadOnly || s.Security.ReadOnlyRoot) && mayMount(caps) {
		return nil, nil, api.Errorf(api.CodeUnsupported, "start %s: a guest with CAP_SYS_ADMIN, as every system guest is, could make its read-only root writable again", s.Name).
			WithField("spec.security.readOnlyRoot").WithHint("run it without that capability, or with a writable root")
	}
	filter, err = e.filters.get(caps)
	return caps, filter, err
}

// checkTarget keeps volumes out of the kernel's file systems, and so out of
// the way of everything that reads them.
func checkTarget(target string) error {
	clean := path.Clean("/" + target)
	first, _, _ := strings.Cut(clean[1:], "/")
	if !path.IsAbs(target) || clean == "/" || slices.Contains([]string{"proc", "sys", "dev"}, first) && clean != "/dev/shm" {
		return api.Errorf(api.CodeInvalid, "a volume can't be mounted at %q", target).WithField("spec.mounts").
			WithHint("choose an absolute path outside of /proc, /sys and /dev")
	}
	return nil
}

// checkResources compares limits with the host.
func (e *Engine) checkResources(r api.Resources) error {
	cpus, memory := hostSize()
	if r.CPUs > float64(cpus) {
		return api.Errorf(api.CodeNoResources, "%g CPUs are more than the %d of this host", r.CPUs, cpus).WithField("spec.resources.cpus")
	}
	if r.Memory > memory {
		return api.Errorf(api.CodeNoResources, "%s of memory are more than the %s of this host", r.Memory, memory).WithField("spec.resources.memory")
	}
	if r.Memory > 0 && r.Memory < minMemory {
		return api.Errorf(api.CodeInvalid, "%s of memory are too little to start in", r.Memory).WithField("spec.resources.memory").
			WithHint("at least %s", minMemory)
	}
	if r.CPUSet == "" {
		return nil
	}
	set, err := parseCPUs(r.CPUSet)
	if err != nil {
		return err
	}
	online, err := onlineCPUs()
	if err != nil {
		return err
	}
	for _, c := range set {
		if !slices.Contains(online, c) {
			return api.Errorf(api.CodeNoResources, "CPU %d of set %q is not on this host", c, r.CPUSet).WithField("spec.resources.cpuSet")
		}
	}
	return nil
}

// minMemory holds the agent and a small program.
const minMemory = 6 * api.MiB

var hostSize = sync.OnceValues(func() (int, api.Bytes) {
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return runtime.NumCPU(), 1 << 62
	}
	n := runtime.NumCPU()
	if online, err := onlineCPUs(); err == nil {
		n = len(online)
	}
	return n, api.Bytes(si.Totalram) * api.Bytes(si.Unit)
})

func onlineCPUs() ([]int, error) {
	b, err := os.ReadFile("/sys/devices/system/cpu/online")
	if err != nil {
		return nil, err
	}
	return parseCPUs(strings.TrimSpace(string(b)))
}

// parseCPUs reads a list like 0-1,4.
func parseCPUs(s string) ([]int, error) {
	var cpus []int
	for part := range strings.SplitSeq(s, ",") {
		a, b, ok := strings.Cut(part, "-")
		if !ok {
			b = a
		}
		first, err1 := strconv.ParseUint(a, 10, 16)
		last, err2 := strconv.ParseUint(b, 10, 16)
		if err := errors.Join(err1, err2); err != nil || last < first {
			return nil, api.Errorf(api.CodeInvalid, "%q is no list of CPUs", s).WithField("spec.resources.cpuSet").
				WithHint("write it like 0-1,4")
		}
		for c := first; c <= last; c++ {
			cpus = append(cpus, int(c))
		}
	}
	return cpus, nil
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
	l.Devices = blockDevices(root)
	return l
}

// sysctlPattern is those that the kernel keeps per network or IPC namespace
// (Documentation/admin-guide/sysctl). A name that only looks so is refused
// by the kernel.
var sysctlPattern = regexp.MustCompile(`^(net/[A-Za-z0-9_./:-]+|kernel/(shm|msg)[a-z_]+|kernel/sem|fs/mqueue/[a-z_]+)$`)

// sysctlPath turns net.ipv4.ip_forward into a path. As in sysctl(8), in a
// name whose first separator is a slash, dots are literal.
func sysctlPath(name string) string {
	if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '/' {
		return name
	}
	return strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, name)
}

func checkSysctl(name string) error {
	p := sysctlPath(name)
	if !sysctlPattern.MatchString(p) || path.Clean(p) != p || strings.Contains(p, "..") {
		return api.Errorf(api.CodeInvalid, "sysctl %q is not kept per guest", name).WithField("spec.sysctls").
			WithHint("allowed are net.*, kernel.shm*, kernel.msg*, kernel.sem and fs.mqueue.*")
	}
	return nil
}

// sysctls are the defaults that let a guest's programs bind low ports and
// send pings without capabilities, and what the user set.
func sysctls(set map[string]string) [][2]string {
	all := map[string]string{
		"net/ipv4/ip_unprivileged_port_start": "0",
		"net/ipv4/ping_group_range":           "0 65535",
	}
	for name, v := range set {
		all[sysctlPath(name)] = v
	}
	var out [][2]string
	for _, name := range slices.Sorted(maps.Keys(all)) {
		out = append(out, [2]string{name, all[name]})
	}
	return out
}

var rlimitNumbers = map[string]int{
	"as": unix.RLIMIT_AS, "core": unix.RLIMIT_CORE, "cpu": unix.RLIMIT_CPU, "data": unix.RLIMIT_DATA,
	"fsize": unix.RLIMIT_FSIZE, "locks": unix.RLIMIT_LOCKS, "memlock": unix.RLIMIT_MEMLOCK,
	"msgqueue": unix.RLIMIT_MSGQUEUE, "nice": unix.RLIMIT_NICE, "nofile": unix.RLIMIT_NOFILE,
	"nproc": unix.RLIMIT_NPROC, "rss": unix.RLIMIT_RSS, "rtprio": unix.RLIMIT_RTPRIO,
	"rttime": unix.RLIMIT_RTTIME, "sigpending": unix.RLIMIT_SIGPENDING, "stack": unix.RLIMIT_STACK,
}

// defaultRlimits: the number of processes is bounded by the cgroup; the soft
// limit of files is what select(2) can handle; core dumps go where the host's
// core_pattern says, so none by default.
var defaultRlimits = map[string]api.Ulimit{
	"core": {Soft: 0, Hard: -1}, "nofile": {Soft: 1024, Hard: 524288}, "nproc": {Soft: -1, Hard: -1},
	"memlock": {Soft: 8 << 20, Hard: 8 << 20},
}

// setRlimits sets a guest's resource limits from outside, where a hard limit
// can be raised, and returns them for setup. On a host where root may not
// raise limits, defaults stay at what the host has.
func setRlimits(pid int, set map[string]api.Ulimit) ([]setup.Rlimit, error) {
	all := maps.Clone(defaultRlimits)
	maps.Copy(all, set)
	var out []setup.Rlimit
	for _, name := range slices.Sorted(maps.Keys(all)) {
		r := setup.Rlimit{Resource: rlimitNumbers[name], Soft: rlimit(all[name].Soft), Hard: rlimit(all[name].Hard)}
		err := unix.Prlimit(pid, r.Resource, &unix.Rlimit{Cur: r.Soft, Max: r.Hard}, nil)
		if _, asked := set[name]; err == unix.EPERM && !asked {
			var now unix.Rlimit
			if err = unix.Prlimit(pid, r.Resource, nil, &now); err == nil {
				r.Hard = min(r.Hard, now.Max)
				r.Soft = min(r.Soft, r.Hard)
				err = unix.Prlimit(pid, r.Resource, &unix.Rlimit{Cur: r.Soft, Max: r.Hard}, nil)
			}
		}
		if err != nil {
			return nil, api.Errorf(api.CodeInvalid, "set resource limit %s to %d:%d: %w", name, all[name].Soft, all[name].Hard, err).
				WithField("spec.ulimits").WithHint("stay below the host's own limits: fs.nr_open, and the daemon's if it lacks CAP_SYS_RESOURCE")
		}
		out = append(out, r)
	}
	return out, nil
}

func rlimit(n int64) uint64 {
	if n < 0 {
		return unix.RLIM_INFINITY
	}
	return uint64(n)
}
