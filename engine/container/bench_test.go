package container

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cleave-project/cleave/engine/enginetest"
)

// BenchmarkStart starts and removes guests of a small image, and prints where
// the time goes: the median moment at which each step was done.
func BenchmarkStart(b *testing.B) {
	e := newEngine(b)
	laps := map[string][]time.Duration{}
	var order []string
	var starts, cleans []time.Duration
	for b.Loop() {
		spec := guestSpec(b, "exec sleep 1000")
		begin := time.Now()
		moments := make(chan struct {
			step string
			at   time.Duration
		}, 16)
		if _, err := e.start(b.Context(), spec, func(step string) {
			moments <- struct {
				step string
				at   time.Duration
			}{step, time.Since(begin)}
		}); err != nil {
			b.Fatal(err)
		}
		starts = append(starts, time.Since(begin))
		close(moments)
		for m := range moments {
			if laps[m.step] == nil {
				order = append(order, m.step)
			}
			laps[m.step] = append(laps[m.step], m.at)
		}
		begin = time.Now()
		if err := e.Clean(b.Context(), spec.ID); err != nil {
			b.Fatal(err)
		}
		cleans = append(cleans, time.Since(begin))
	}
	for _, step := range order {
		b.ReportMetric(ms(laps[step], 50), "ms-at-"+step)
	}
	b.ReportMetric(ms(starts, 50), "ms-start-p50")
	b.ReportMetric(ms(starts, 99), "ms-start-p99")
	b.ReportMetric(ms(cleans, 50), "ms-clean-p50")
}

// ms is a percentile in milliseconds.
func ms(d []time.Duration, percent int) float64 {
	slices.Sort(d)
	return float64(d[(len(d)-1)*percent/100].Microseconds()) / 1000
}

// BenchmarkRunc is the same guest by runc, for comparison.
func BenchmarkRunc(b *testing.B) {
	runc, err := exec.LookPath("runc")
	if err != nil {
		b.Skipf("runc is not installed: %v", err)
	}
	dir := b.TempDir()
	if err := enginetest.BusyboxRoot(filepath.Join(dir, "rootfs")); err != nil {
		b.Fatal(err)
	}
	c := exec.Command(runc, "spec")
	c.Dir = dir
	if out, err := c.CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	conf, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		b.Fatal(err)
	}
	text := strings.Replace(string(conf), `"sh"`, `"sleep", "1000"`, 1)
	text = strings.Replace(text, `"terminal": true`, `"terminal": false`, 1)
	write(b, filepath.Join(dir, "config.json"), text)
	var starts, deletes []time.Duration
	for i := 0; b.Loop(); i++ {
		id := fmt.Sprintf("cleave-bench-%d-%d", os.Getpid(), i)
		begin := time.Now()
		c := exec.Command(runc, "--root", filepath.Join(dir, "state"), "run", "-d", "-b", dir, id)
		if err := c.Run(); err != nil {
			b.Fatal(err)
		}
		starts = append(starts, time.Since(begin))
		begin = time.Now()
		if out, err := exec.Command(runc, "--root", filepath.Join(dir, "state"), "delete", "-f", id).CombinedOutput(); err != nil {
			b.Fatalf("%v: %s", err, out)
		}
		deletes = append(deletes, time.Since(begin))
	}
	b.ReportMetric(ms(starts, 50), "ms-start-p50")
	b.ReportMetric(ms(starts, 99), "ms-start-p99")
	b.ReportMetric(ms(deletes, 50), "ms-clean-p50")
}
