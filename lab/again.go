package lab

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
)

// lost are what is said when an emulated host has lost something: Cleave's
// monitor of a guest whose processor KVM shut down, the outside of a host
// whose agent's connection ended though the host is on, or which executes
// nothing any more, and a host's kernel of a processor of its own.
var lost = []string{"(triple fault)", "the connection ended; see whether the instance is still running", hostHangs, "watchdog: BUG: soft lockup"}

// mostRuns is how often a test is run at most: with some loads every third guest is
// lost.
const mostRuns = 3

// Again runs a test, and up to twice more if it failed and a host whose
// processors are emulated lost a guest's processor, its agent or a processor of
// its own, which QEMU's emulation of SVM does (docs/lab.md has what is known of
// it). On hardware there is one try.
func Again(t testing.TB, f func(testing.TB)) {
	t.Helper()
	again(t, !accelerator(), f)
}

func again(t testing.TB, emulated bool, f func(testing.TB)) {
	t.Helper()
	for left := mostRuns; ; {
		a := try(t, f)
		if !a.failed {
			return
		}
		if left--; left == 0 || !emulated || !a.lost {
			t.FailNow()
		}
		t.Logf("an emulated host lost a guest, a processor or its agent: once more")
	}
}

// attempt is a test that may fail without the one that it stands for.
type attempt struct {
	testing.TB

	mu           sync.Mutex
	failed, lost bool
	cleanups     []func()
}

// try runs f to its end, and cleans up behind it.
func try(t testing.TB, f func(testing.TB)) *attempt {
	a := &attempt{TB: t}
	for _, f := range []func(){func() { f(a) }, a.cleanUp} {
		done := make(chan struct{})
		go func() { // one that can be left from anywhere
			defer close(done)
			f()
		}()
		<-done
	}
	return a
}

// cleanUp does the last first, and the others too when one of them gives up.
func (a *attempt) cleanUp() {
	for _, f := range a.cleanups {
		defer f()
	}
}

func (a *attempt) Cleanup(f func()) { a.cleanups = append(a.cleanups, f) }

func (a *attempt) Log(args ...any) {
	a.Helper()
	a.Logf("%s", strings.TrimSuffix(fmt.Sprintln(args...), "\n"))
}

func (a *attempt) Logf(format string, args ...any) {
	a.Helper()
	s := fmt.Sprintf(format, args...)
	a.mu.Lock()
	a.lost = a.lost || slices.ContainsFunc(lost, func(w string) bool { return strings.Contains(s, w) })
	a.mu.Unlock()
	a.TB.Log(s)
}

func (a *attempt) Failed() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.failed
}

func (a *attempt) Fail() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.failed = true
}

func (a *attempt) FailNow() {
	a.Fail()
	runtime.Goexit()
}

func (a *attempt) Error(args ...any) {
	a.Helper()
	a.Log(args...)
	a.Fail()
}

func (a *attempt) Errorf(format string, args ...any) {
	a.Helper()
	a.Logf(format, args...)
	a.Fail()
}

func (a *attempt) Fatal(args ...any) {
	a.Helper()
	a.Log(args...)
	a.FailNow()
}

func (a *attempt) Fatalf(format string, args ...any) {
	a.Helper()
	a.Logf(format, args...)
	a.FailNow()
}
