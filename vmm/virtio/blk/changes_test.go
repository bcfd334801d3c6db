package blk_test

import (
	"bytes"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cleave-project/cleave/vmm/virtio/blk"
)

const tracked = blk.TrackedBlock

// since is what was changed since a mark, in numbers of blocks.
func since(t *testing.T, c *blk.Changes, mark uint64) (out [][2]int64) {
	t.Helper()
	ranges, ok := c.Since(mark)
	if !ok {
		t.Fatalf("mark %d isn't known", mark)
	}
	for _, r := range ranges {
		out = append(out, [2]int64{r.Offset / tracked, r.Size / tracked})
	}
	return out
}

func TestChangesSinceAMark(t *testing.T) {
	c := blk.NewChanges()
	c.Change(0, 1<<30) // before any mark
	one := c.Mark()
	c.Change(3*tracked+10, 5)
	c.Change(100*tracked-1, 2)
	two := c.Mark()
	c.Change(4*tracked, 3*tracked)
	c.Change(-5, 3)
	c.Change(0, 0)
	if _, ok := c.Since(one + two); ok {
		t.Error("a mark that nobody made is known")
	}
	want := [][2]int64{{3, 4}, {99, 2}}
	if diff := cmp.Diff(want, since(t, c, one)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([][2]int64{{4, 3}}, since(t, c, two)); diff != "" {
		t.Error(diff)
	}
	again := blk.NewChanges(c.Spans()...) // it goes on elsewhere
	again.Change(5<<40, 1)
	if diff := cmp.Diff(append(want, [2]int64{5 << 24, 1}), since(t, again, one)); diff != "" {
		t.Error(diff)
	}
	three := again.Mark()
	again.Change(0, 1)
	if !again.Forget(two) || again.Forget(two) {
		t.Error("a mark can't be forgotten, or twice")
	}
	if _, ok := again.Since(two); ok {
		t.Error("a mark that was forgotten is known")
	}
	// What was changed since a mark that is forgotten is told of older ones.
	if diff := cmp.Diff([][2]int64{{0, 1}, {3, 4}, {99, 2}, {5 << 24, 1}}, since(t, again, one)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([][2]int64{{0, 1}}, since(t, again, three)); diff != "" {
		t.Error(diff)
	}
	again.Forget(one)
	again.Forget(three)
	if again.Change(0, 1); again.Marks() != 0 {
		t.Errorf("%d marks are left", again.Marks())
	}
}

// TestChangesAreThoseOfAModel makes marks, changes and forgets at random, and
// compares with sets of blocks.
func TestChangesAreThoseOfAModel(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 9))
	c := blk.NewChanges()
	model := map[uint64]map[int64]bool{}
	var marks []uint64
	for step := range 4000 {
		switch n := r.IntN(20); {
		case n == 0:
			m := c.Mark()
			model[m], marks = map[int64]bool{}, append(marks, m)
		case n == 1 && len(marks) > 0:
			i := r.IntN(len(marks))
			if !c.Forget(marks[i]) {
				t.Fatalf("step %d: mark %d isn't known", step, i)
			}
			delete(model, marks[i])
			marks = slices.Delete(marks, i, i+1)
		case n == 2:
			c = blk.NewChanges(c.Spans()...)
		case n == 3 && len(marks) > 0:
			m := marks[r.IntN(len(marks))]
			got := map[int64]bool{}
			for _, b := range since(t, c, m) {
				for i := range b[1] {
					if got[b[0]+i] {
						t.Fatalf("step %d: block %d is told twice", step, b[0]+i)
					}
					got[b[0]+i] = true
				}
			}
			if diff := cmp.Diff(model[m], got); diff != "" {
				t.Fatalf("step %d: %s", step, diff)
			}
		default:
			off, n := r.Int64N(300*tracked), 1+r.Int64N(1<<r.IntN(24))
			c.Change(off, n)
			for _, set := range model {
				for b := off / tracked; b <= (off+n-1)/tracked; b++ {
					set[b] = true
				}
			}
		}
	}
}

// TestAReplicaFollowsTheChanges has writers work on a disk, each change told
// before and after as a device does, while a replica is brought up to date by
// one mark after the other, and other marks come and go.
func TestAReplicaFollowsTheChanges(t *testing.T) {
	const blocks, writes, writers = 4000, 3000, 4
	var locks [blocks]sync.Mutex // of the content, which tears as a disk's may
	disk, replica := make([]byte, blocks), make([]byte, blocks)
	c := blk.NewChanges()
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 3))
			for range writes {
				b, n := r.IntN(blocks-4), 1+r.IntN(4)
				c.Change(int64(b)*tracked, int64(n)*tracked)
				for range r.IntN(20) {
					runtime.Gosched() // a write takes its time
				}
				for i := b; i < b+n; i++ {
					locks[i].Lock()
					disk[i] = byte(r.Uint32())
					locks[i].Unlock()
				}
				c.Change(int64(b)*tracked, int64(n)*tracked)
			}
		})
	}
	last := c.Mark()
	copyBlocks := func(from, n int) {
		for i := from; i < min(from+n, blocks); i++ {
			locks[i].Lock()
			replica[i] = disk[i]
			locks[i].Unlock()
		}
	}
	copyBlocks(0, blocks)
	update := func() {
		next := c.Mark()
		other := c.Mark()
		for _, b := range since(t, c, last) {
			copyBlocks(int(b[0]), int(b[1]))
		}
		c.Forget(next) // whose changes are the older one's then
		next = c.Mark()
		for _, b := range since(t, c, last) {
			copyBlocks(int(b[0]), int(b[1]))
		}
		c.Forget(other)
		c.Forget(last)
		last = next
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	for rounds := 0; ; rounds++ {
		update()
		select {
		case <-done:
			if update(); !bytes.Equal(disk, replica) {
				t.Errorf("the replica isn't the disk after %d rounds", rounds)
			}
			return
		default:
		}
	}
}

// BenchmarkChange is what a write costs more, of which a device tells twice.
func BenchmarkChange(b *testing.B) {
	for name, marks := range map[string]int{"unmarked": 0, "marked": 1} {
		b.Run(name, func(b *testing.B) {
			c := blk.NewChanges()
			for range marks {
				c.Mark()
			}
			b.RunParallel(func(p *testing.PB) {
				r := rand.New(rand.NewPCG(1, 2))
				for p.Next() {
					c.Change(r.Int64N(100<<30)&^4095, 4096)
				}
			})
		})
	}
}
