// Package ratelimit bounds how fast a device works for its guest: bytes and
// operations in a second, each a bucket of tokens that fills at its rate and
// holds a burst.
//
// What is asked for passes when the buckets hold as much, and is taken out of
// them. What is larger than a burst passes when the bucket is full, and leaves
// it in debt: those behind it wait for what it cost. A Limiter may be used by any number of goroutines.
// Nothing of it is saved: limits are the host's, and buckets begin full.
package ratelimit

import (
	"math"
	"sync"
	"time"
)

// Rate is one bucket. The zero value is no limit.
type Rate struct {
	PerSecond uint64
	// Burst is how much may pass at once after a rest; 0 is what PerSecond
	// allows in a tenth of a second, and one at least.
	Burst uint64
}

// Limits are those of a device. The zero value is none.
type Limits struct {
	Bytes, Operations Rate
}

// Limiter holds work to limits that can be changed at any time.
type Limiter struct {
	now func() time.Time

	mu      sync.Mutex
	buckets [2]bucket // of bytes, and of operations
	changed chan struct{}
}

// New returns a limiter.
func New(l Limits) *Limiter {
	r := &Limiter{now: time.Now, changed: make(chan struct{})}
	r.Set(l)
	return r
}

// Set changes the limits at once, also for those who wait. Debts made under
// the limits before are forgiven.
func (r *Limiter) Set(l Limits) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	r.buckets = [2]bucket{newBucket(l.Bytes, now), newBucket(l.Operations, now)}
	close(r.changed)
	r.changed = make(chan struct{})
}

// Take waits until an operation of some bytes may pass, and charges it. When
// stop is closed it waits no longer and returns false: nothing is charged. A
// nil Limiter has no limits.
func (r *Limiter) Take(stop <-chan struct{}, bytes int) bool {
	if r == nil {
		return true
	}
	for {
		wait, changed := r.try(bytes)
		if wait == 0 {
			return true
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-changed:
			t.Stop()
		case <-stop:
			t.Stop()
			return false
		}
	}
}

// Try charges an operation if it may pass at once, and says whether it could.
func (r *Limiter) Try(bytes int) bool {
	if r == nil {
		return true
	}
	wait, _ := r.try(bytes)
	return wait == 0
}

// try charges what may pass now; else it returns for how long nothing may,
// unless limits change.
func (r *Limiter) try(bytes int) (wait time.Duration, changed <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.buckets[0].rate == 0 && r.buckets[1].rate == 0 {
		return 0, nil
	}
	now := r.now()
	costs := [2]float64{float64(bytes), 1}
	for i, cost := range costs {
		wait = max(wait, r.buckets[i].wait(now, cost))
	}
	if wait > 0 {
		return wait, r.changed
	}
	for i, cost := range costs {
		r.buckets[i].tokens -= cost
	}
	return 0, nil
}

// bucket is one of tokens; a rate of 0 is no limit.
type bucket struct {
	rate, burst, tokens float64
	filled              time.Time
}

func newBucket(r Rate, now time.Time) bucket {
	burst := float64(r.Burst)
	if burst == 0 {
		burst = max(1, float64(r.PerSecond)/10)
	}
	return bucket{rate: float64(r.PerSecond), burst: burst, tokens: burst, filled: now}
}

// wait fills the bucket and returns when it will hold what something costs.
func (b *bucket) wait(now time.Time, cost float64) time.Duration {
	if b.rate == 0 {
		return 0
	}
	if passed := now.Sub(b.filled); passed > 0 {
		b.tokens = min(b.burst, b.tokens+passed.Seconds()*b.rate)
		b.filled = now
	}
	missing := min(cost, b.burst) - b.tokens
	if missing <= 0 {
		return 0
	}
	seconds := min(missing/b.rate, time.Hour.Seconds()) // and then look again
	return time.Duration(math.Ceil(seconds * 1e9))
}
