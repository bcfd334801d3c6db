package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// figure is one that is measured.
type figure struct {
	what, unit string
	// target is what ours may be of QEMU's at most; at least, where more is
	// better. 0 for none.
	target float64
	more   bool
}

var (
	boot    = figure{"start to the guest's init", "ms", 0.9, false}
	memory  = figure{"resident beside the guest's memory (1 vCPU, 128 MiB)", "MiB", 0, false}
	restore = figure{"restore to what the guest says first", "ms", 0, false}
)

// phase is a part of a guest's work.
type phase struct {
	name        string
	mib         float64
	rate, exits figure
}

var phases = []phase{
	newPhase("blk-read", "disk: reads of 1 MiB", 128),
	newPhase("blk-write", "disk: writes of 1 MiB", 128),
	newPhase("blk-read-4k", "disk: reads of 4 KiB, one after the other", 8),
	newPhase("net-send", "network: TCP from the guest", 64),
	newPhase("net-receive", "network: TCP to the guest", 64),
}

func newPhase(name, what string, mib float64) phase {
	return phase{name, mib, figure{what, "MiB/s", 1, true}, figure{what, "exits/MiB", 1, false}}
}

// table has the samples of each figure and monitor.
type table map[figure]map[string][]float64

func (t table) add(f figure, monitor string, v float64) {
	if t[f] == nil {
		t[f] = map[string][]float64{}
	}
	t[f][monitor] = append(t[f][monitor], v)
}

// median is the middle one, of an even number the lower.
func median(s []float64) float64 {
	if len(s) == 0 {
		return 0
	}
	return slices.Sorted(slices.Values(s))[(len(s)-1)/2]
}

// print writes the table: medians, and ratios of ours to QEMU's.
func (t table) print(w io.Writer) {
	ours, theirs := monitors[0].name, monitors[1].name
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(out, "medians of %d\t%s\t%s\tratio\ttarget\t\n", len(t[boot][ours]), ours, theirs)
	row := func(f figure) {
		a, b := median(t[f][ours]), median(t[f][theirs])
		ratio, target, verdict := "-", "", ""
		if b != 0 {
			ratio = fmt.Sprintf("%.2f", a/b)
		}
		if f.target != 0 && b != 0 {
			sign, ok := "<=", a/b <= f.target
			if f.more {
				sign, ok = ">=", a/b >= f.target
			}
			target, verdict = fmt.Sprintf("%s %.1f", sign, f.target), judged(ok)
		}
		fmt.Fprintf(out, "%s\t%.1f %s\t%.1f %s\t%s\t%s\t%s\n", f.what, a, f.unit, b, f.unit, ratio, target, verdict)
	}
	row(boot)
	m := median(t[memory][ours])
	fmt.Fprintf(out, "%s\t%.1f MiB\t%.1f MiB\t%.2f\t<= 8 MiB\t%s\n", memory.what, m, median(t[memory][theirs]), m/median(t[memory][theirs]), judged(m <= 8))
	back, cold := median(t[restore][ours]), median(t[boot][ours])
	fmt.Fprintf(out, "%s\t%.1f ms\t-\t%.1f %% of a boot\t<= 5 %%\t%s\n", restore.what, back, 100*back/cold, judged(back <= cold*0.05))
	for _, p := range phases {
		row(p.rate)
	}
	for _, p := range phases {
		row(p.exits)
	}
	_ = out.Flush()
}

func judged(ok bool) string {
	if ok {
		return "pass"
	}
	return "MISSED"
}
