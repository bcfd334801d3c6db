package balloon_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/vmm/virtio"
	"github.com/cleave-project/cleave/vmm/virtio/balloon"
	"github.com/cleave-project/cleave/vmm/virtio/virtiotest"
)

const page = 4096

func numbers(pages ...uint32) (b []byte) {
	for _, p := range pages {
		b = binary.LittleEndian.AppendUint32(b, p)
	}
	return b
}

// fill writes to pages of the guest, far behind what tests allocate.
func fill(t testing.TB, g *virtiotest.Guest, first, n uint64) []byte {
	t.Helper()
	b, err := g.Memory.Slice(first*page, n*page)
	if err != nil {
		t.Fatal(err)
	}
	for i := range b {
		b[i] = 7
	}
	return b
}

// taken is how much of the host's the guest's memory takes.
func taken(t testing.TB, g *virtiotest.Guest) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(int(g.Memory.File().Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

func TestPagesInTheBalloonAreTheHosts(t *testing.T) {
	d := balloon.New(balloon.Options{})
	g := virtiotest.Plug(t, d)
	g.Start(g.Offered())
	if err := d.SetTarget(100 * page); err != nil {
		t.Fatal(err)
	}
	g.ConfigChanged()
	if n := g.Config(0, 4); n != 100 {
		t.Errorf("the guest is to give %d pages", n)
	}
	b := fill(t, g, 10000, 100)
	before := taken(t, g)
	var list []uint32
	for i := range uint32(100) { // down, as Linux does, with one out of place
		list = append(list, 10099-i)
	}
	list[3], list[50] = list[50], list[3]
	g.Queues[0].Do([][]byte{numbers(list[:60]...), numbers(list[60:]...)})
	g.SetConfig(4, 4, 100)
	if got := before - taken(t, g); got != 100*page {
		t.Errorf("%d bytes were given back", got)
	}
	if !bytes.Equal(b, make([]byte, len(b))) {
		t.Error("pages in the balloon have something")
	}
	if target, actual := d.Size(); target != 100*page || actual != 100*page || d.Metrics().Inflated != 100*page {
		t.Errorf("%d of %d bytes, metrics %+v", actual, target, d.Metrics())
	}
	g.Queues[1].Do([][]byte{numbers(10000, 10001)})
	b[0] = 1 // and is there again
	g.Move(balloon.New(balloon.Options{}))
	if g.Config(0, 8) != 100<<32|100 {
		t.Errorf("after a move: %#x", g.Config(0, 8))
	}
	g.Reset()
	if g.Config(4, 4) != 0 {
		t.Error("after a reset there is something in it")
	}
}

func TestFreePagesAreReported(t *testing.T) {
	for name, poison := range map[string]uint64{"zero": 0, "poisoned": 0xaa} {
		d := balloon.New(balloon.Options{})
		g := virtiotest.Plug(t, d)
		g.StartWith(g.Offered(), func() { g.SetConfig(12, 4, poison) })
		q := g.Queues[3]
		r := q.Make(nil, 16*page, 4*page)
		for _, b := range r.Writable {
			b[0], b[len(b)-1] = 7, 7
		}
		q.Add(r)
		q.Kick()
		q.Wait(r)
		for _, b := range r.Writable {
			if gone := b[0] == 0 && b[len(b)-1] == 0; gone != (poison == 0) {
				t.Errorf("%s: pages start with %d", name, b[0])
			}
		}
	}
}

func TestAGuestTellsOfItsMemory(t *testing.T) {
	d := balloon.New(balloon.Options{})
	g := virtiotest.Plug(t, d)
	if _, err := d.Stats(t.Context()); !errors.Is(err, balloon.ErrNoStats) {
		t.Errorf("got %v", err)
	}
	g.Start(g.Offered())
	stat := func(tag uint16, v uint64) []byte {
		return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint16(nil, tag), v)
	}
	q := g.Queues[2]
	r := q.Make([][]byte{append(stat(4, 1), stat(99, 5)...), stat(5, 2)[:7]})
	q.Add(r)
	q.Kick()
	var driver sync.WaitGroup
	driver.Go(func() {
		for i := range byte(3) {
			q.Wait(r)
			r.Readable[0][2] = i + 2
			q.Add(r)
			q.Kick()
		}
	})
	// The first answers may be what the guest has offered unasked.
	for last := uint64(0); last < 4; {
		s, err := d.Stats(t.Context())
		if err != nil || s.Free < max(last, 1) || s.Free > 4 || s.Total != 0 {
			t.Fatalf("%+v after %d, %v", s, last, err)
		}
		last = s.Free
		g.Transport().Pause() // with a buffer held, or not
		g.Transport().Resume()
	}
	driver.Wait()
	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	for range 2 {
		if _, err := d.Stats(stopped); err == nil {
			t.Error("an answer without a question")
		}
	}
}

func TestPagesOfOthersAreRefused(t *testing.T) {
	g := virtiotest.Plug(t, balloon.New(balloon.Options{}))
	for name, try := range map[string]func(){
		"outside": func() { g.Queues[0].Add(g.Queues[0].Make([][]byte{numbers(1 << 30)})) },
		"half":    func() { g.Queues[3].Add(g.Queues[3].Make(nil, 100)) },
	} {
		g.Start(g.Offered())
		try()
		g.Queues[0].Kick()
		g.Queues[3].Kick()
		g.Failed()
		_ = name
	}
}

func TestQueuesHaveNoGaps(t *testing.T) {
	g := virtiotest.Plug(t, balloon.New(balloon.Options{DeflateOnOOM: true}))
	g.Start(balloon.FeatureReporting|balloon.FeatureDeflateOnOOM, 3)
	r := g.Queues[2].Make(nil, page)
	r.Writable[0][0] = 7
	g.Queues[2].Add(r)
	g.Queues[2].Kick()
	g.Queues[2].Wait(r)
	if r.Writable[0][0] != 0 {
		t.Error("what was reported is still there")
	}
}

func TestStatesAreChecked(t *testing.T) {
	for _, bad := range []string{"", "{}", `{"Version":2}`, `{"Version":1,"Target":-1}`} {
		if balloon.New(balloon.Options{}).Restore([]byte(bad)) == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func FuzzPages(f *testing.F) {
	f.Add(numbers(9000, 9001, 1<<31), uint16(page), []byte{1, 0, 1, 2, 3, 4, 5, 6, 7, 8})
	f.Fuzz(func(t *testing.T, list []byte, size uint16, stats []byte) {
		g := virtiotest.Plug(t, balloon.New(balloon.Options{}))
		g.Start(g.Offered() | virtio.FeatureIndirect)
		// Queues of the guest itself are not for the balloon: others would be
		// what fails.
		for i := 0; i+4 <= len(list); i += 4 {
			if n := binary.LittleEndian.Uint32(list[i:]); n < 8192 {
				binary.LittleEndian.PutUint32(list[i:], n+8192)
			}
		}
		g.Queues[0].Add(g.Queues[0].Make([][]byte{list}))
		g.Queues[3].Add(g.Queues[3].Make(nil, int(size)+1))
		g.Queues[2].Add(g.Queues[2].Make([][]byte{stats}))
		for _, q := range g.Queues {
			q.Kick()
		}
		g.Transport().Pause()
		g.Transport().Resume()
		g.Reset()
	})
}
