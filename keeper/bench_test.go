package keeper

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// BenchmarkStart is the whole call, with all namespaces, as the daemon sees
// it. The guest's end is not counted.
func BenchmarkStart(b *testing.B) {
	var procs []string
	for _, controller := range []string{"cpu", "cpuacct", "memory", "pids", "freezer", "devices", "blkio"} {
		root := filepath.Join("/sys/fs/cgroup", controller)
		if _, err := os.Stat(filepath.Join(root, "tasks")); err == nil {
			procs = append(procs, filepath.Join(makeCgroup(b, root), "cgroup.procs"))
		}
	}
	k := newKeeper(b)
	for name, change := range map[string]func(*StartRequest){
		"plain":    func(*StartRequest) {},
		"terminal": func(r *StartRequest) { r.Terminal = true },
		"v1":       func(r *StartRequest) { r.CgroupProcs = procs },
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				r := k.request("a", "sleep")
				change(r)
				k.start(r)
				b.StopTimer()
				k.Signal(b.Context(), "a", syscall.SIGKILL)
				k.wait("a")
				k.Forget(b.Context(), "a")
				b.StartTimer()
			}
		})
	}
	b.ReportMetric(float64(rss(b, k.pid()))/(1<<20), "keeper-MiB")
	b.ReportMetric(float64(rss(b, k.holderPID()))/(1<<20), "holder-MiB")
}

// BenchmarkGuests measures what an idle guest costs the keeper.
func BenchmarkGuests(b *testing.B) {
	const guests = 300
	for b.Loop() {
		k := newKeeper(b)
		empty, held := rss(b, k.pid()), rss(b, k.holderPID())
		for i := range guests {
			r := k.request("g"+strconv.Itoa(i), "sleep")
			r.Clone = syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID
			k.start(r)
		}
		b.ReportMetric(float64(rss(b, k.pid())-empty)/1024/guests, "KiB/guest")
		b.ReportMetric(float64(rss(b, k.holderPID())-held)/1024/guests, "holder-KiB/guest")
		b.ReportMetric(float64(empty)/(1<<20), "keeper-MiB")
		k.remove()
	}
}

func rss(b *testing.B, pid int) int {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		b.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(text))[1])
	if err != nil {
		b.Fatal(err)
	}
	return pages * os.Getpagesize()
}
