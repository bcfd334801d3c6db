package cgroup

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cleave-project/cleave/api"
)

// Limits are what a guest may take.
type Limits struct {
	api.Resources
	// Devices are the block devices below the root volume, as MAJOR:MINOR,
	// that the I/O limits hold for.
	Devices []string
	// Together has the kernel kill the whole guest when its memory is full,
	// where it can (version 2).
	Together bool
}

// setting is one write to a control file.
type setting struct{ controller, name, value string }

const period = 100_000 // µs, cpu.max and cpu.cfs_period_us

// Set applies limits, all or nothing. A new group has none, and what is
// unlimited there is not written.
func (g *Group) Set(l Limits, fresh bool) error {
	if l.CPUSet != "" {
		if err := g.joinCPUSet(); err != nil {
			return err
		}
	}
	var undo []func()
	for _, s := range g.settings(l, fresh) {
		file := g.file(s.controller, s.name)
		if g.t.Where(s.controller) == "" {
			if s.value == unlimited(s.name) {
				continue
			}
			return api.Errorf(api.CodeUnsupported, "set %s to %s: this host has no %s cgroup controller (%s)",
				s.name, s.value, s.controller, g.t.Refused[s.controller])
		}
		old, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) && s.value == unlimited(s.name) {
			continue
		}
		if err == nil {
			err = write(file, s.value)
		}
		if err != nil {
			slices.Reverse(undo)
			for _, f := range undo {
				f()
			}
			return limitError(s, err)
		}
		undo = append(undo, func() { restore(file, string(old), s.value) })
	}
	return nil
}

// limitError explains why a limit was refused.
func limitError(s setting, err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return api.Errorf(api.CodeUnsupported, "set %s to %s: this kernel has no such limit", s.name, s.value)
	case s.controller == "memory":
		return api.Errorf(api.CodeConflict, "set %s to %s: the guest uses more and can't be pushed back: %w", s.name, s.value, err).
			WithHint("choose a larger limit, or stop the guest first")
	}
	return api.Errorf(api.CodeInvalid, "set limit: %w", err)
}

// restore puts a control file back. Files with a line for each device take
// one line at a time, and forget a device only when told so.
func restore(file, old, written string) {
	if dev, _, ok := strings.Cut(written, " "); ok && strings.Contains(dev, ":") {
		value := dev + " 0"
		if strings.HasPrefix(filepath.Base(file), "io.") {
			value = dev + " rbps=max wbps=max riops=max wiops=max"
		}
		for line := range strings.Lines(old) {
			if strings.HasPrefix(line, dev+" ") {
				value = strings.TrimSpace(line)
			}
		}
		old = value
	}
	_ = write(file, strings.TrimSpace(old))
}

// unlimited is the value of a control file in a new group.
func unlimited(name string) string {
	switch name {
	case "cpu.max":
		return fmt.Sprintf("max %d", period)
	case "cpu.weight":
		return "100"
	case "cpu.shares":
		return "1024"
	case "cpu.cfs_quota_us", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.soft_limit_in_bytes":
		return "-1"
	case "memory.low", "memory.oom.group":
		return "0"
	case "memory.max", "memory.swap.max", "pids.max":
		return "max"
	}
	return ""
}

// settings translates limits into writes, in an order that the kernel takes.
func (g *Group) settings(l Limits, fresh bool) []setting {
	var all []setting
	for _, c := range Controllers {
		v2 := g.t.on[c]
		switch c {
		case "cpu":
			all = append(all, cpuSettings(l, v2)...)
		case "memory":
			all = append(all, g.memorySettings(l, v2)...)
		case "pids":
			all = append(all, setting{c, "pids.max", number(l.PIDs, "max")})
		case "cpuset":
			if l.CPUSet != "" || !fresh && exists(g.file(c, "cpuset.cpus")) {
				all = append(all, setting{c, "cpuset.cpus", g.cpus(l.CPUSet)})
			}
		case "io":
			all = append(all, ioSettings(l, v2, fresh)...)
		}
	}
	if fresh {
		all = slices.DeleteFunc(all, func(s setting) bool { return s.value == unlimited(s.name) })
	}
	return all
}

func cpuSettings(l Limits, v2 bool) []setting {
	weight := l.CPUWeight
	if weight == 0 {
		weight = 100
	}
	// The kernel takes no quota below a millisecond.
	quota := max(int64(math.Round(l.CPUs*period)), 1000)
	if v2 {
		m := unlimited("cpu.max")
		if l.CPUs > 0 {
			m = fmt.Sprintf("%d %d", quota, period)
		}
		return []setting{{"cpu", "cpu.weight", strconv.Itoa(weight)}, {"cpu", "cpu.max", m}}
	}
	if l.CPUs == 0 {
		quota = -1
	}
	// Shares of 1024 are a weight of 100 (sched/core.c, cpu_weight_write_u64).
	shares := min(max(int64(math.Round(float64(weight)*1024/100)), 2), 262144)
	return []setting{
		{"cpu", "cpu.shares", strconv.FormatInt(shares, 10)},
		{"cpu", "cpu.cfs_quota_us", strconv.FormatInt(quota, 10)},
	}
}

// memorySettings orders the two version 1 limits so that memory plus swap is
// never below memory, which the kernel refuses.
func (g *Group) memorySettings(l Limits, v2 bool) []setting {
	if v2 {
		// memory.low is what reclaim leaves alone: under pressure a guest is
		// pushed back to it, and not below.
		swap := strconv.FormatInt(int64(l.Swap), 10)
		s := []setting{
			{"memory", "memory.low", number(int64(l.MemorySoft), "0")},
			{"memory", "memory.max", number(int64(l.Memory), "max")},
		}
		if g.t.SwapAccounting() || l.Swap > 0 {
			s = append(s, setting{"memory", "memory.swap.max", swap})
		}
		if l.Together {
			s = append(s, setting{"memory", "memory.oom.group", "1"})
		}
		return s
	}
	s := []setting{{"memory", "memory.limit_in_bytes", number(int64(l.Memory), "-1")}}
	if g.t.SwapAccounting() || l.Swap > 0 {
		both := "-1"
		if l.Memory > 0 {
			both = strconv.FormatInt(int64(l.Memory+l.Swap), 10)
		}
		s = append(s, setting{"memory", "memory.memsw.limit_in_bytes", both})
		now, err := readInt(g.file("memory", "memory.memsw.limit_in_bytes"))
		if err == nil && (l.Memory == 0 || uint64(l.Memory) > now) {
			slices.Reverse(s)
		}
	}
	return append(s, setting{"memory", "memory.soft_limit_in_bytes", number(int64(l.MemorySoft), "-1")})
}

func ioSettings(l Limits, v2, fresh bool) []setting {
	var s []setting
	rates := []struct {
		v1, v2 string
		n      int64
	}{
		{"blkio.throttle.read_bps_device", "rbps", int64(l.DiskRead)},
		{"blkio.throttle.write_bps_device", "wbps", int64(l.DiskWrite)},
		{"blkio.throttle.read_iops_device", "riops", l.DiskReadIO},
		{"blkio.throttle.write_iops_device", "wiops", l.DiskWriteO},
	}
	for _, dev := range l.Devices {
		line := dev
		for _, r := range rates {
			line += " " + r.v2 + "=" + number(r.n, "max")
			if !v2 && (r.n > 0 || !fresh) {
				s = append(s, setting{"io", r.v1, fmt.Sprintf("%s %d", dev, r.n)})
			}
		}
		if v2 && (strings.Count(line, "=max") < len(rates) || !fresh) {
			s = append(s, setting{"io", "io.max", line})
		}
	}
	return s
}

// number prints n, or none for zero.
func number(n int64, none string) string {
	if n == 0 {
		return none
	}
	return strconv.FormatInt(n, 10)
}

// cpus is the list to write for set; empty means all that the parent has.
func (g *Group) cpus(set string) string {
	if set != "" || g.t.on["cpuset"] {
		if set == "" {
			return "\n"
		}
		return set
	}
	b, _ := os.ReadFile(filepath.Join(filepath.Dir(g.dir(g.t.v1["cpuset"])), "cpuset.cpus"))
	return strings.TrimSpace(string(b))
}

// joinCPUSet makes the version 1 cpuset of a guest that was started without
// one, and moves its processes there until no new one is found outside.
func (g *Group) joinCPUSet() error {
	root := g.t.v1["cpuset"]
	if g.t.on["cpuset"] || root == "" || exists(g.dir(root)) {
		return nil
	}
	dir := g.dir(root)
	if err := mkdir(dir); err != nil {
		return err
	}
	if err := fillCPUSet(dir); err != nil {
		return err
	}
	moved := map[string]bool{}
	for {
		b, err := os.ReadFile(filepath.Join(g.V2(), "cgroup.procs"))
		if err != nil {
			return err
		}
		found := false
		for _, pid := range strings.Fields(string(b)) {
			if moved[pid] {
				continue
			}
			found, moved[pid] = true, true
			// A process that ended meanwhile is none to move (ESRCH).
			_ = write(filepath.Join(dir, "cgroup.procs"), pid)
		}
		if !found {
			return nil
		}
	}
}
