package lab

import (
	"runtime"
	"testing"
)

// outer notes whether a test failed that isn't meant to fail this one.
type outer struct {
	testing.TB
	failed bool
}

func (o *outer) FailNow() {
	o.failed = true
	runtime.Goexit()
}

func TestOnlyWhatAnEmulatedHostLostIsTriedAgain(t *testing.T) {
	const gaveUp = "h1: cleave-vmm: the guest's processor gave up (triple fault): vCPU 0"
	for name, c := range map[string]struct {
		emulated bool
		says     []string // by each try, which fails behind it; "" passes
		tries    int
		failed   bool
	}{
		"passes":                    {true, []string{""}, 1, false},
		"lost once":                 {true, []string{gaveUp, ""}, 2, false},
		"without its agent":         {true, []string{"host h1: executing /lab/test in the guest: the connection ended; see whether the instance is still running", ""}, 2, false},
		"without an answer":         {true, []string{"host h1: no answer: it said nothing for 6m0s, and its host hangs: [/lab/test -test.v]", ""}, 2, false},
		"silent":                    {true, []string{"host h1: no answer: it said nothing for 6m0s: [/lab/test -test.v]", ""}, 1, true},
		"without a processor":       {true, []string{"[   32.493796] watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [test:214]", ""}, 2, false},
		"lost twice":                {true, []string{gaveUp, gaveUp, ""}, 3, false},
		"lost three times":          {true, []string{gaveUp, gaveUp, gaveUp}, 3, true},
		"lost, then another reason": {true, []string{gaveUp, "a number is missing"}, 2, true},
		"another reason":            {true, []string{"a number is missing", ""}, 1, true},
		"lost on hardware":          {false, []string{gaveUp, ""}, 1, true},
	} {
		o := &outer{TB: t}
		tries, cleaned := 0, 0
		half := func(t testing.TB) {
			t.Cleanup(func() { cleaned++ })
			says := c.says[tries]
			tries++
			if says != "" {
				t.Log(says)
				t.Fatal("it fails")
			}
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			again(o, c.emulated, half)
		}()
		<-done
		if tries != c.tries || o.failed != c.failed || cleaned != tries {
			t.Errorf("%s: %d tries, of which %d were cleaned up behind; failed: %t", name, tries, cleaned, o.failed)
		}
	}
}
