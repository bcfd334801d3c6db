package migrate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// follower is memory that may follow its guest.
type follower struct{ *disk }

func (follower) MayFollow() bool { return true }

// late is memory that comes when its guest runs.
type late struct {
	*disk
	mu       sync.Mutex
	came     sync.Cond
	missing  map[int64]bool // by offsets of units
	wanted   map[int64]bool
	want     func(Range)
	abandons bool
}

var errLost = errors.New("memory is lost")

func (l *late) Later(off, n int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for at := off; at < off+n; at += unit {
		l.missing[at] = true
	}
	return nil
}

func (l *late) Await(want func(Range)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.want = want
	return nil
}

func (l *late) Missing() (out []Range) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for at := range l.missing {
		out = append(out, Range{at, unit})
		if l.wanted[at] {
			l.want(Range{at, unit})
		}
	}
	return out
}

func (l *late) Abandon() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.abandons = true
	l.came.Broadcast()
}

// fill is what WriteAt and Zero do when memory is awaited.
func (l *late) fill(off, n int64, f func(at int64) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for at := off; at < off+n; at += unit {
		if !l.missing[at] {
			continue
		}
		if err := f(at); err != nil {
			return err
		}
		delete(l.missing, at)
	}
	l.came.Broadcast()
	return nil
}

func (l *late) WriteAt(p []byte, off int64) (int, error) {
	if l.want == nil {
		return l.disk.WriteAt(p, off)
	}
	if off%unit != 0 || len(p)%unit != 0 {
		return 0, errors.New("no whole units")
	}
	return len(p), l.fill(off, int64(len(p)), func(at int64) error {
		_, err := l.disk.WriteAt(p[at-off:at-off+unit], at)
		return err
	})
}

func (l *late) Zero(off, n int64) error {
	if l.want == nil {
		return l.disk.Zero(off, n)
	}
	return l.fill(off, n, func(at int64) error { return l.disk.Zero(at, unit) })
}

// need waits for a unit, and has a guest do something with it.
func (l *late) need(at int64, f func(b []byte)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.missing[at] && !l.wanted[at] {
		l.wanted[at] = true
		l.want(Range{at, unit})
	}
	for l.missing[at] {
		if l.abandons {
			return errLost
		}
		l.came.Wait()
	}
	l.disk.mu.Lock()
	defer l.disk.mu.Unlock()
	f(l.disk.b[at : at+unit])
	return nil
}

// ahead is a guest that reads its memory at random, and finds what it had at
// the source, and writes some of it.
func ahead(from *fake, written map[int64]bool, failed *error) func(*late) {
	return func(l *late) {
		for _, u := range mrand.Perm(memorySize / unit) {
			at := int64(u) * unit
			if err := l.need(at, func(b []byte) {
				if !bytes.Equal(b, from.volumes[0].b[at:at+unit]) {
					*failed = fmt.Errorf("what is at %#x was never there", at)
				}
				if u%5 == 0 {
					b[7] = 0x77
					written[at] = true
				}
			}); err != nil {
				*failed = err
				return
			}
		}
	}
}

// newWriter is a guest that writes to so many pages of its memory in every
// millisecond, and a place for it.
func newWriter(pages int) (from, to *fake) {
	from, to = newFake(true), newFake(false)
	from.noDisk = true
	from.run(pages)
	return from, to
}

// sameBut compares what has arrived with what was sent, but for what the guest
// has written since.
func sameBut(t *testing.T, from, to *fake, written map[int64]bool) {
	t.Helper()
	for at := range written {
		from.volumes[0].b[at+7] = 0x77
	}
	for i := range from.volumes {
		if !bytes.Equal(from.volumes[i].b, to.volumes[i].b) {
			t.Errorf("volume %d differs", i)
		}
	}
	if len(written) == 0 {
		t.Error("the guest did nothing")
	}
}

func TestAGuestRunsAheadOfItsMemory(t *testing.T) {
	for _, streams := range []int{1, 2, 3} {
		t.Run(fmt.Sprint(streams), func(t *testing.T) {
			from, to := newWriter(64)
			var failed error
			written := map[int64]bool{}
			to.ahead = ahead(from, written, &failed)
			l, dial := listen(t)
			var conns []net.Conn
			for range streams {
				conns = append(conns, &slow{Conn: dial()})
			}
			phases := map[string]bool{}
			r, sent, received := move(t, from, to, l, conns, Options{
				PostCopy: true, Downtime: 20 * time.Millisecond, Throttle: true, Progress: func(r Report) { phases[r.Phase] = true },
			}, nil)
			if sent != nil || received != nil {
				t.Fatal(sent, received)
			}
			<-to.done
			if failed != nil {
				t.Error(failed)
			}
			if from.alive() || !to.ran.Load() {
				t.Error("it isn't alive on just the one side")
			}
			sameBut(t, from, to, written)
			if !phases["following"] || r.Throttle != 0 || r.Downtime <= 0 {
				t.Errorf("%v, %+v", phases, r)
			}
		})
	}
}

func TestAGuestThatFitsTheDowntimeDoesNotRunAhead(t *testing.T) {
	from, to := newWriter(1)
	l, dial := listen(t)
	_, sent, received := move(t, from, to, l, []net.Conn{dial()}, Options{PostCopy: true, Downtime: time.Minute, Progress: func(r Report) {
		if r.Phase == "following" {
			t.Error("memory follows it")
		}
	}}, nil)
	if sent != nil || received != nil {
		t.Fatal(sent, received)
	}
	same(t, from, to)
}

// TestALinkThatBreaksBehindAGuestIsTiedAgain cuts connections behind any number
// of bytes of either direction, again and again, until the guest has moved or
// stays.
func TestALinkThatBreaksBehindAGuestIsTiedAgain(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := mrand.New(mrand.NewPCG(seed, 0))
	outcomes := map[string]int{}
	for i := range 40 {
		from, to := newWriter(64)
		var failed error
		written := map[int64]bool{}
		to.ahead = ahead(from, written, &failed)
		l, _ := listen(t)
		tie := func() (conns []net.Conn) {
			after := int64(random.IntN(4 << 20))
			if random.IntN(2) == 0 { // of the few bytes of the destination's words
				after = -int64(random.IntN(200*headSize) + 1)
			}
			b := &budget{}
			b.left.Store(max(after, -after))
			for range 1 + i%3 {
				c, err := net.Dial("unix", l.Addr().String())
				if err != nil {
					return nil // it is all there, and the source has missed that word
				}
				conns = append(conns, &cut{Conn: c, budget: b, reads: after < 0})
			}
			return conns
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		done := make(chan error, 1)
		go func() { done <- Receive(ctx, l, to, nil) }()
		_, err := Send(ctx, tie(), from, Options{PostCopy: true, Downtime: time.Microsecond})
		resumed := 0
		var broken *Interrupted
		for errors.As(err, &broken) {
			if from.alive() {
				t.Fatalf("the guest runs here while it may run there: %v", err)
			}
			resumed++
			conns := tie()
			if conns == nil {
				err = nil
				break
			}
			_, err = broken.Resume(ctx, conns)
		}
		if err != nil { // it stays, and who waits for it may wait for long
			cancel()
		}
		received := <-done
		cancel()
		here, there := from.alive(), to.ran.Load()
		switch {
		case here == there:
			t.Fatalf("here %t, there %t: %v, %v", here, there, err, received)
		case there != (err == nil) || there != (received == nil):
			t.Fatalf("there %t: %v, %v", there, err, received)
		}
		what := "stays"
		if there {
			<-to.done
			if failed != nil {
				t.Error(failed)
			}
			sameBut(t, from, to, written)
			what = fmt.Sprintf("moves, resumed %d times", min(resumed, 3))
		}
		outcomes[what]++
		from.halt()
	}
	t.Log(outcomes)
	if outcomes["moves, resumed 1 times"]+outcomes["moves, resumed 2 times"]+outcomes["moves, resumed 3 times"] == 0 {
		t.Error("no move was ever resumed")
	}
}

func TestADestinationThatFailsBeforeItRunsGivesTheGuestBack(t *testing.T) {
	for name, spoil := range map[string]func(to *fake){
		"it can't load":   func(to *fake) { to.loadErr = errors.New("a state that it doesn't like") },
		"it can't be run": func(to *fake) { to.runErr = errors.New("something is missing") },
	} {
		t.Run(name, func(t *testing.T) {
			from, to := newWriter(64)
			defer from.halt()
			spoil(to)
			l, dial := listen(t)
			_, sent, received := move(t, from, to, l, []net.Conn{dial(), dial()}, Options{PostCopy: true, Downtime: 1}, nil)
			if received == nil || !errors.Is(sent, errAborted) || !from.alive() || to.ran.Load() {
				t.Errorf("%v, %v", sent, received)
			}
		})
	}
}

// TestAMachineThatEndsNeedsNoMemory has the guest end while its memory follows.
func TestAMachineThatEndsNeedsNoMemory(t *testing.T) {
	from, to := newWriter(64)
	l, dial := listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	to.ahead = func(*late) { cancel() }
	done := make(chan error, 1)
	go func() { done <- Receive(ctx, l, to, nil) }()
	_, err := Send(t.Context(), []net.Conn{&slow{Conn: dial()}}, from, Options{PostCopy: true, Downtime: 1})
	if err != nil || from.alive() {
		t.Errorf("the source hears %v", err)
	}
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// TestWhoResumesHasToBeTheSource lets others come in between.
func TestWhoResumesHasToBeTheSource(t *testing.T) {
	from, to := newWriter(64)
	var failed error
	written := map[int64]bool{}
	to.ahead = ahead(from, written, &failed)
	l, dial := listen(t)
	done := make(chan error, 1)
	go func() { done <- Receive(t.Context(), l, to, nil) }()
	b := &budget{}
	b.left.Store(memorySize/2 + 1<<20 + 100<<10) // the first round, and something of the rest
	_, err := Send(t.Context(), []net.Conn{&cut{Conn: dial(), budget: b}}, from, Options{PostCopy: true, Downtime: 1})
	var broken *Interrupted
	if !errors.As(err, &broken) {
		t.Fatalf("it was to be cut behind the guest: %v", err)
	}
	other := newFake(true)
	other.run(1)
	if _, err := Send(t.Context(), []net.Conn{dial()}, other, Options{}); err == nil || !strings.Contains(err.Error(), "another guest is expected") || !other.alive() {
		t.Errorf("another guest: %v", err)
	}
	other.halt()
	if _, err := broken.Resume(t.Context(), []net.Conn{dial()}); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	<-to.done
	sameBut(t, from, to, written)
}
