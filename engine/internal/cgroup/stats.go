package cgroup

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cleave-project/cleave/api"
)

// Stats fills in what cgroups know of the guest. What the host doesn't
// measure stays zero.
func (g *Group) Stats(s *api.Stats) error {
	cpu, err := readMap(filepath.Join(g.V2(), "cpu.stat"))
	if err != nil {
		return fmt.Errorf("read cgroup: %w", err)
	}
	s.CPUNanos = cpu["usage_usec"] * 1000
	s.ThrottledNanos = cpu["throttled_usec"] * 1000
	if g.t.Where("cpu") == "v1" {
		old, _ := readMap(g.file("cpu", "cpu.stat"))
		s.ThrottledNanos = old["throttled_time"]
	}
	g.memoryStats(s)
	pids, _ := readInt(g.file("pids", "pids.current"))
	s.PIDs = int64(pids)
	g.ioStats(s)
	for _, r := range []string{"cpu", "memory", "io"} {
		b, err := os.ReadFile(filepath.Join(g.V2(), r+".pressure"))
		if err != nil || len(b) == 0 {
			continue
		}
		if s.Pressure == nil {
			s.Pressure = map[string]api.Stall{}
		}
		s.Pressure[r] = parseStall(b)
	}
	return nil
}

func (g *Group) memoryStats(s *api.Stats) {
	m, _ := readMap(g.file("memory", "memory.stat"))
	var used, limit, idle uint64
	if g.t.on["memory"] {
		used, _ = readInt(g.file("memory", "memory.current"))
		limit, _ = readInt(g.file("memory", "memory.max"))
		idle = m["inactive_file"]
		s.MemoryCache = api.Bytes(m["file"])
		swap, _ := readInt(g.file("memory", "memory.swap.current"))
		s.Swap = api.Bytes(swap)
	} else {
		used, _ = readInt(g.file("memory", "memory.usage_in_bytes"))
		limit, _ = readInt(g.file("memory", "memory.limit_in_bytes"))
		idle = m["total_inactive_file"]
		s.MemoryCache = api.Bytes(m["total_cache"])
		s.Swap = api.Bytes(m["total_swap"])
	}
	s.Memory = api.Bytes(used - min(idle, used))
	// Version 1 shows no limit as the largest multiple of a page.
	if limit < 1<<62 {
		s.MemoryLimit = api.Bytes(limit)
	}
	s.OOMKills = g.OOMKills()
}

// OOMKills counts the guest's processes that were killed for want of memory.
func (g *Group) OOMKills() uint64 {
	name := "memory.oom_control"
	if g.t.on["memory"] {
		name = "memory.events"
	}
	m, _ := readMap(g.file("memory", name))
	return m["oom_kill"]
}

// ioStats adds up the devices. What a guest does on a loop device shows
// there and on the device below, so the larger sum of the two counts.
func (g *Group) ioStats(s *api.Stats) {
	var loop, rest [4]uint64 // read and written bytes, read and write operations
	add := func(dev string, i int, n uint64) {
		if i < 0 {
			return
		}
		if strings.HasPrefix(dev, "7:") {
			loop[i] += n
		} else {
			rest[i] += n
		}
	}
	if g.t.on["io"] {
		keys := map[string]int{"rbytes": 0, "wbytes": 1, "rios": 2, "wios": 3}
		b, _ := os.ReadFile(g.file("io", "io.stat"))
		for line := range bytes.Lines(b) {
			f := strings.Fields(string(line))
			for _, kv := range f[min(1, len(f)):] {
				k, v, _ := strings.Cut(kv, "=")
				if i, ok := keys[k]; ok {
					n, _ := strconv.ParseUint(v, 10, 64)
					add(f[0], i, n)
				}
			}
		}
	} else {
		for i, name := range []string{"io_service_bytes_recursive", "io_serviced_recursive"} {
			b, _ := os.ReadFile(g.file("io", "blkio.throttle."+name))
			for line := range bytes.Lines(b) {
				f := strings.Fields(string(line))
				if len(f) != 3 {
					continue
				}
				n, _ := strconv.ParseUint(f[2], 10, 64)
				switch f[1] {
				case "Read":
					add(f[0], 2*i, n)
				case "Write":
					add(f[0], 2*i+1, n)
				}
			}
		}
	}
	s.ReadBytes, s.WriteBytes = max(loop[0], rest[0]), max(loop[1], rest[1])
	s.ReadOps, s.WriteOps = max(loop[2], rest[2]), max(loop[3], rest[3])
}

// parseStall reads a pressure file (Documentation/accounting/psi.rst).
func parseStall(b []byte) api.Stall {
	var p api.Stall
	for line := range bytes.Lines(b) {
		f := strings.Fields(string(line))
		if len(f) == 0 {
			continue
		}
		var avg float64
		var total uint64
		for _, kv := range f[1:] {
			switch k, v, _ := strings.Cut(kv, "="); k {
			case "avg10":
				avg, _ = strconv.ParseFloat(v, 64)
			case "total":
				total, _ = strconv.ParseUint(v, 10, 64)
			}
		}
		switch f[0] {
		case "some":
			p.Some10, p.SomeTotal = avg, total
		case "full":
			p.Full10, p.FullTotal = avg, total
		}
	}
	return p
}

// readInt reads a file of one number; "max" is the largest there is.
func readInt(file string) (uint64, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	s := strings.TrimSpace(string(b))
	if s == "max" {
		return 1<<64 - 1, nil
	}
	return strconv.ParseUint(s, 10, 64)
}

// readMap reads a flat keyed file.
func readMap(file string) (map[string]uint64, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	m := map[string]uint64{}
	for line := range bytes.Lines(b) {
		k, v, _ := strings.Cut(strings.TrimSpace(string(line)), " ")
		if n, err := strconv.ParseUint(v, 10, 64); err == nil {
			m[k] = n
		}
	}
	return m, nil
}
