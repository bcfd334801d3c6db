package storagetest

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
)

// BenchmarkCreateDelete measures making and removing a volume (with a file
// in it) beside count others, and prints the median of each.
func BenchmarkCreateDelete(b *testing.B, target Target, size api.Bytes, counts ...int) {
	for _, count := range counts {
		b.Run(fmt.Sprintf("volumes=%d", count), func(b *testing.B) {
			d := open(b, target, place(b, target))
			for i := range count {
				if err := d.Create(b.Context(), fmt.Sprintf("old-%d", i), size); err != nil {
					b.Fatal(err)
				}
			}
			status, err := d.Status(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			times := map[string][]time.Duration{}
			timed := func(what string, call func(context.Context, string) error, id string) {
				start := time.Now()
				if err := call(b.Context(), id); err != nil {
					b.Fatal(err)
				}
				times[what] = append(times[what], time.Since(start))
			}
			makeIt := func(ctx context.Context, id string) error { return d.Create(ctx, id, size) }
			path := func(ctx context.Context, id string) error { _, err := d.Path(ctx, id); return err }
			n := 0
			for b.Loop() {
				id := fmt.Sprintf("new-%d", n)
				n++
				timed("create-"+status.Quota, makeIt, id)
				timed("path", path, id)
				timed("delete", d.Delete, id)
			}
			for what, all := range times {
				slices.Sort(all)
				b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, what+"-p50-ms")
				b.ReportMetric(float64(all[len(all)*99/100].Microseconds())/1000, what+"-p99-ms")
			}
		})
	}
}
