package validate

import (
	"errors"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// Resources compares limits with the host. A guest needs least of memory.
func Resources(r api.Resources, least api.Bytes) error {
	cpus, memory := HostSize()
	if r.CPUs > float64(cpus) {
		return api.Errorf(api.CodeNoResources, "%g CPUs are more than the %d of this host", r.CPUs, cpus).WithField("spec.resources.cpus")
	}
	if r.Memory > memory {
		return api.Errorf(api.CodeNoResources, "%s of memory are more than the %s of this host", r.Memory, memory).WithField("spec.resources.memory")
	}
	if r.Memory > 0 && r.Memory < least {
		return api.Errorf(api.CodeInvalid, "%s of memory are too little to start in", r.Memory).WithField("spec.resources.memory").
			WithHint("at least %s", least)
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

// HostSize is the host's CPUs and memory.
var HostSize = sync.OnceValues(func() (int, api.Bytes) {
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
