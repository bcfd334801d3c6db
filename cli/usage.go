package cli

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/cli/output"
)

// usage is what one instance uses per second, from two samples.
type usage struct {
	api.Stats
	CPU                  float64 // in percent of one CPU
	Read, Write, In, Out float64 // bytes per second
}

// usages compares two samples. An instance that wasn't in the first, or was
// restarted between them (its counters fell), has no rates yet.
func usages(before, now []api.Stats) []usage {
	old := make(map[string]api.Stats, len(before))
	for _, s := range before {
		old[s.ID] = s
	}
	out := make([]usage, 0, len(now))
	for _, s := range now {
		u := usage{Stats: s}
		o, ok := old[s.ID]
		if d := s.Time.Sub(o.Time).Seconds(); ok && d > 0 && s.CPUNanos >= o.CPUNanos {
			u.CPU = float64(s.CPUNanos-o.CPUNanos) / float64(time.Second) / d * 100
			u.Read, u.Write = rate(o.ReadBytes, s.ReadBytes, d), rate(o.WriteBytes, s.WriteBytes, d)
			u.In, u.Out = rate(o.RxBytes, s.RxBytes, d), rate(o.TxBytes, s.TxBytes, d)
		}
		out = append(out, u)
	}
	return out
}

func rate(before, now uint64, seconds float64) float64 {
	if now < before {
		return 0
	}
	return float64(now-before) / seconds
}

// sortKey is a key that sorts top by a column.
type sortKey struct {
	key  byte
	name string
	cmp  func(a, b usage) int // what comes first is the greatest use
}

var sortKeys = []sortKey{
	{'c', "cpu", func(a, b usage) int { return cmp.Compare(b.CPU, a.CPU) }},
	{'m', "memory", func(a, b usage) int { return cmp.Compare(b.Memory, a.Memory) }},
	{'p', "pids", func(a, b usage) int { return cmp.Compare(b.PIDs, a.PIDs) }},
	{'d', "disk", func(a, b usage) int { return cmp.Compare(b.Read+b.Write, a.Read+a.Write) }},
	{'n', "net", func(a, b usage) int { return cmp.Compare(b.In+b.Out, a.In+a.Out) }},
	{'a', "name", func(a, b usage) int { return strings.Compare(a.Name, b.Name) }},
}

func sortUsages(list []usage, key sortKey, reverse bool) {
	slices.SortStableFunc(list, func(a, b usage) int {
		c := cmp.Or(key.cmp(a, b), strings.Compare(a.Name, b.Name))
		if reverse {
			return -c
		}
		return c
	})
}

// brief prints a number of bytes in at most five columns, like 1.2M.
func brief(f float64) string {
	if f < 1 {
		return "0"
	}
	for _, unit := range []string{"", "K", "M", "G", "T"} {
		switch {
		case f < 10 && unit != "":
			return fmt.Sprintf("%.1f%s", f, unit)
		case f < 1000:
			return fmt.Sprintf("%.0f%s", f, unit)
		}
		f /= 1024
	}
	return "lots"
}

var usageListing = output.Listing[usage]{
	Name: func(u usage) string { return u.Name },
	Columns: []output.Column[usage]{
		{Head: "NAME", Flex: true, Cell: func(u usage) string { return u.Name }},
		{Head: "CPU%", Right: true, Cell: func(u usage) string { return fmt.Sprintf("%.1f", u.CPU) }, Style: func(u usage) output.Style { return heat(u.CPU, 90) }},
		{Head: "MEMORY", Right: true, Cell: func(u usage) string { return brief(float64(u.Memory)) }},
		{Head: "OF", Right: true, Cell: func(u usage) string { return share(u.Memory, u.MemoryLimit) }, Style: func(u usage) output.Style { return heat(percent(u.Memory, u.MemoryLimit), 90) }},
		{Head: "PIDS", Right: true, Cell: func(u usage) string { return fmt.Sprint(u.PIDs) }},
		{Head: "READ/s", Right: true, Cell: func(u usage) string { return brief(u.Read) }},
		{Head: "WRITE/s", Right: true, Cell: func(u usage) string { return brief(u.Write) }},
		{Head: "IN/s", Right: true, Cell: func(u usage) string { return brief(u.In) }},
		{Head: "OUT/s", Right: true, Cell: func(u usage) string { return brief(u.Out) }},
		{Head: "STALL", Right: true, Cell: worstStall, Style: func(u usage) output.Style { return heat(stallOf(u), 20) }},
	},
}

// usageFor is the listing without the columns that a narrow screen has no
// room for.
func usageFor(width int) output.Listing[usage] {
	l := usageListing
	least := map[string]int{"STALL": 76, "READ/s": 66, "WRITE/s": 66, "IN/s": 52, "OUT/s": 52}
	l.Columns = slices.DeleteFunc(slices.Clone(l.Columns), func(c output.Column[usage]) bool { return width < least[c.Head] })
	return l
}

func heat(f, hot float64) output.Style {
	switch {
	case f >= hot:
		return output.Bad
	case f >= hot/2:
		return output.Busy
	}
	return output.Plain
}

func percent(n, of api.Bytes) float64 {
	if of == 0 {
		return 0
	}
	return float64(n) / float64(of) * 100
}

func share(n, of api.Bytes) string {
	if of == 0 {
		return ""
	}
	return fmt.Sprintf("%.0f%%", percent(n, of))
}

func stallOf(u usage) float64 {
	worst := 0.0
	for _, p := range u.Pressure {
		worst = max(worst, p.Some10)
	}
	return worst
}

// worstStall names the resource that the guest waits for most.
func worstStall(u usage) string {
	name := ""
	for _, what := range []string{"cpu", "memory", "io"} {
		if p, ok := u.Pressure[what]; ok && p.Some10 > 0 && p.Some10 == stallOf(u) {
			name = map[string]string{"cpu": "cpu", "memory": "mem", "io": "io"}[what]
			break
		}
	}
	if name == "" {
		return ""
	}
	return fmt.Sprintf("%s %.0f%%", name, stallOf(u))
}
