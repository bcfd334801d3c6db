package accel

import (
	"sync"
	"time"
)

// rdtsc reads the time stamp counter.
func rdtsc() uint64

// TSC is the frequency of the host's time stamp counter in kHz, which is that
// of a translated guest's: it can't measure it where the machine has no other
// clock. The first call takes 50 ms.
var TSC = sync.OnceValue(func() int {
	// The pair of readings that were closest together is the best of some.
	read := func() (uint64, time.Time) {
		var tsc uint64
		var at time.Time
		best := time.Hour
		for range 8 {
			before := time.Now()
			t := rdtsc()
			if d := time.Since(before); d < best {
				best, tsc, at = d, t, before.Add(d/2)
			}
		}
		return tsc, at
	}
	t0, a0 := read()
	time.Sleep(50 * time.Millisecond)
	t1, a1 := read()
	return int(float64(t1-t0) / float64(a1.Sub(a0).Nanoseconds()) * 1e6)
})
