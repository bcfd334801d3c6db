package ratelimit

import (
	"testing"
	"testing/synctest"
	"time"
)

// run takes n operations of some bytes and returns how long that took. Time is
// that of synctest: it passes when all wait.
func run(r *Limiter, n, bytes int) time.Duration {
	began := time.Now()
	for range n {
		r.Take(nil, bytes)
	}
	return time.Since(began)
}

func near(t *testing.T, what string, got, want time.Duration) {
	t.Helper()
	if d := got - want; d < -want/50-time.Millisecond || d > want/50+time.Millisecond {
		t.Errorf("%s took %v instead of %v", what, got, want)
	}
}

func TestRatesHold(t *testing.T) {
	for name, c := range map[string]struct {
		limits   Limits
		n, bytes int
		want     time.Duration
	}{
		"none":                {Limits{}, 1000, 1 << 20, 0},
		"operations":          {Limits{Operations: Rate{100, 10}}, 510, 4096, 5 * time.Second},
		"operations, unsaid":  {Limits{Operations: Rate{PerSecond: 100}}, 510, 4096, 5 * time.Second},
		"bytes":               {Limits{Bytes: Rate{1 << 20, 64 << 10}}, 16*5 + 1, 64 << 10, 5 * time.Second},
		"larger than a burst": {Limits{Bytes: Rate{1 << 20, 1}}, 6, 1 << 20, 5 * time.Second},
		"the lower of both":   {Limits{Bytes: Rate{1 << 30, 1}, Operations: Rate{10, 1}}, 51, 1, 5 * time.Second},
		"one in ten seconds":  {Limits{Bytes: Rate{100, 1}}, 2, 1000, 10 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) { near(t, name, run(New(c.limits), c.n, c.bytes), c.want) })
	}
	var none *Limiter
	if !none.Take(nil, 1) {
		t.Error("no limiter is a limit")
	}
}

func TestARestIsABurstAndNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(Limits{Operations: Rate{10, 5}})
		run(r, 100, 0)
		time.Sleep(time.Hour)
		near(t, "a burst", run(r, 5, 0), 0)
		near(t, "what came behind it", run(r, 10, 0), time.Second)
	})
}

func TestLimitsChangeForThoseWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(Limits{Bytes: Rate{PerSecond: 1}})
		r.Take(nil, 1<<30)
		took := make(chan time.Duration)
		go func() { took <- run(r, 1, 1) }()
		time.Sleep(time.Second)
		r.Set(Limits{})
		near(t, "a wait that was ended", <-took, time.Second)
		r.Set(Limits{Operations: Rate{1, 1}})
		near(t, "new limits", run(r, 3, 0), 2*time.Second)
	})
}

func TestAWaitIsStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(Limits{Operations: Rate{1, 1}})
		r.Take(nil, 0)
		stop, passed := make(chan struct{}), make(chan bool)
		go func() { passed <- r.Take(stop, 0) }()
		synctest.Wait()
		close(stop)
		if <-passed {
			t.Error("it passed")
		}
		near(t, "what wasn't charged", run(r, 1, 0), time.Second)
	})
}

func TestWhoDoesNotWaitIsChargedToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(Limits{Operations: Rate{1, 1}})
		if !r.Try(0) || r.Try(0) {
			t.Error("other than one passes at once")
		}
		near(t, "what came behind it", run(r, 1, 0), time.Second)
		if none := (*Limiter)(nil); !none.Try(1) {
			t.Error("no limiter is a limit")
		}
	})
}

func TestManyShareOneRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, done := New(Limits{Operations: Rate{100, 1}}), make(chan time.Duration)
		for range 10 {
			go func() { done <- run(r, 50, 0) }()
		}
		var last time.Duration
		for range 10 {
			last = max(last, <-done)
		}
		near(t, "500 operations", last, 5*time.Second)
	})
}

func BenchmarkTake(b *testing.B) {
	r := New(Limits{Bytes: Rate{PerSecond: 1 << 60}, Operations: Rate{PerSecond: 1 << 40}})
	b.ReportAllocs()
	for b.Loop() {
		r.Take(nil, 4096)
	}
}
