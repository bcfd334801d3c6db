package vmm

import (
	"errors"
	"math/bits"
	"testing"
	"time"

	"github.com/cleave-project/cleave/vmm/kvm"
)

// TestWhatIsWrittenIsKnown has a guest write a byte to each of many pages,
// more than a ring has room for, and asks which they were: by bitmaps and by
// rings.
func TestWhatIsWrittenIsKnown(t *testing.T) {
	const pages = kvm.RingSize + 1000
	for name, ring := range map[string]bool{"by bitmaps": false, "by rings": true} {
		t.Run(name, func(t *testing.T) {
			sys := host(t)
			var c code
			loop := len(c.Code)
			for p := range uint32(pages) {
				c.Store8(scratch+p<<12, 1)
			}
			c.Out8(serialPort, 'x')
			c.Jump(loop)
			said := make(signals)
			m, err := New(sys, Config{CPUs: 1, Memory: 64 << 20, Linux: c.Kernel(), Console: said, DirtyRing: ring})
			if ring && errors.Is(err, kvm.ErrRings) {
				t.Skip(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			guard := time.AfterFunc(2*time.Minute, m.Stop)
			defer guard.Stop()
			ended := make(chan struct{})
			go func() { defer close(ended); m.mustRun(t) }()
			defer func() {
				stop := make(chan struct{})
				go func() { m.Stop(); close(stop) }()
				for done := false; !done; {
					select {
					case <-said:
					case <-ended:
						done = true
					}
				}
				<-stop
				if err := m.Close(); err != nil {
					t.Error(err)
				}
			}()
			said.wait(t, 'x') // what is written until then nobody wants to know
			if err := m.logDirty(true); err != nil {
				t.Fatal(err)
			}
			for range 3 {
				said.wait(t, 'x')
				said.wait(t, 'x')
				p, err := m.takeDirty()
				if err != nil {
					t.Fatal(err)
				}
				written(t, p, pages)
			}
			if err := m.logDirty(false); err != nil {
				t.Fatal(err)
			}
			said.wait(t, 'x')
			said.wait(t, 'x')
			if p, err := m.takeDirty(); ring && (err != nil || count(p) != 0) {
				t.Errorf("%d pages are written that nobody wants to know of, %v", count(p), err)
			}
		})
	}
}

// written fails unless pages from scratch on are set, and few others.
func written(t *testing.T, p pages, want int) {
	t.Helper()
	for n := range uint64(want) {
		page := scratch>>12 + n
		if p[0][page/64]&(1<<(page%64)) == 0 {
			t.Fatalf("page %d was written, and isn't known of", n)
		}
	}
	if n := count(p); n > want+16 { // tables, stack
		t.Errorf("%d pages instead of %d", n, want)
	}
}

func count(p pages) (n int) {
	for _, region := range p {
		for _, word := range region {
			n += bits.OnesCount64(word)
		}
	}
	return n
}
