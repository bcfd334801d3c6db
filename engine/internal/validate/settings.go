package validate

import (
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

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

// Sysctls are the defaults that let a guest's programs bind low ports and
// send pings without capabilities, and what the user set: names with slashes,
// and values.
func Sysctls(set map[string]string) ([][2]string, error) {
	all := map[string]string{
		"net/ipv4/ip_unprivileged_port_start": "0",
		"net/ipv4/ping_group_range":           "0 65535",
	}
	for name, v := range set {
		if err := checkSysctl(name); err != nil {
			return nil, err
		}
		all[sysctlPath(name)] = v
	}
	var out [][2]string
	for _, name := range slices.Sorted(maps.Keys(all)) {
		out = append(out, [2]string{name, all[name]})
	}
	return out, nil
}

var rlimitNumbers = map[string]int{
	"as": unix.RLIMIT_AS, "core": unix.RLIMIT_CORE, "cpu": unix.RLIMIT_CPU, "data": unix.RLIMIT_DATA,
	"fsize": unix.RLIMIT_FSIZE, "locks": unix.RLIMIT_LOCKS, "memlock": unix.RLIMIT_MEMLOCK,
	"msgqueue": unix.RLIMIT_MSGQUEUE, "nice": unix.RLIMIT_NICE, "nofile": unix.RLIMIT_NOFILE,
	"nproc": unix.RLIMIT_NPROC, "rss": unix.RLIMIT_RSS, "rtprio": unix.RLIMIT_RTPRIO,
	"rttime": unix.RLIMIT_RTTIME, "sigpending": unix.RLIMIT_SIGPENDING, "stack": unix.RLIMIT_STACK,
}

// DefaultRlimits are without a number of processes, which the cgroup bounds; the soft
// limit of files is what select(2) can handle; core dumps go where the host's
// core_pattern says, so none by default.
var DefaultRlimits = map[string]api.Ulimit{
	"core": {Soft: 0, Hard: -1}, "nofile": {Soft: 1024, Hard: 524288}, "nproc": {Soft: -1, Hard: -1},
	"memlock": {Soft: 8 << 20, Hard: 8 << 20},
}

// Rlimit is a resource limit; all bits set is unlimited.
type Rlimit struct {
	Name       string
	Resource   int
	Soft, Hard uint64
	Asked      bool // by the user, and not only a default
}

// Rlimits are the defaults and what the user set, by name.
func Rlimits(set map[string]api.Ulimit) ([]Rlimit, error) {
	all := maps.Clone(DefaultRlimits)
	maps.Copy(all, set)
	var out []Rlimit
	for _, name := range slices.Sorted(maps.Keys(all)) {
		n, ok := rlimitNumbers[name]
		if !ok {
			return nil, api.Errorf(api.CodeInvalid, "%q is no resource limit", name).WithField("spec.ulimits").
				WithHint("one of: %s", strings.Join(slices.Sorted(maps.Keys(rlimitNumbers)), ", "))
		}
		_, asked := set[name]
		out = append(out, Rlimit{Name: name, Resource: n, Soft: rlimit(all[name].Soft), Hard: rlimit(all[name].Hard), Asked: asked})
	}
	return out, nil
}

func rlimit(n int64) uint64 {
	if n < 0 {
		return unix.RLIM_INFINITY
	}
	return uint64(n)
}
