package blk_test

import (
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
	c := blk.NewChanges(5)
	c.Change(0, 1<<30) // before any mark
	one := c.Mark()
	c.Change(3*tracked+10, 5)
	c.Change(100*tracked-1, 2)
	two := c.Mark()
	c.Change(4*tracked, 3*tracked)
	c.Change(-5, 3)
	c.Change(0, 0)
	if one != 5 || two != 6 {
		t.Errorf("marks %d and %d", one, two)
	}
	want := [][2]int64{{3, 4}, {99, 2}}
	if diff := cmp.Diff(want, since(t, c, one)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([][2]int64{{4, 3}}, since(t, c, two)); diff != "" {
		t.Error(diff)
	}
	// It goes on elsewhere.
	b, err := c.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	again := blk.NewChanges(0)
	if err := again.UnmarshalBinary(b); err != nil {
		t.Fatal(err)
	}
	again.Change(5<<40, 1)
	if diff := cmp.Diff(append(want, [2]int64{5 << 24, 1}), since(t, again, one)); diff != "" {
		t.Error(diff)
	}
	again.Forget(two)
	if _, ok := again.Since(one); ok {
		t.Error("a mark that was forgotten is known")
	}
	if n := len(since(t, again, two)); n != 2 || again.Mark() != 7 {
		t.Errorf("%d ranges are left", n)
	}
	again.Forget(100)
	if _, ok := again.Since(7); ok || again.Mark() != 8 {
		t.Error("numbers begin anew")
	}
}

func FuzzChanges(f *testing.F) {
	c := blk.NewChanges(3)
	c.Mark()
	c.Change(tracked*7, tracked*70)
	c.Mark()
	b, err := c.MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:len(b)-3])
	f.Fuzz(func(t *testing.T, b []byte) {
		c := blk.NewChanges(0)
		if c.UnmarshalBinary(b) != nil {
			return
		}
		again, err := c.MarshalBinary()
		if diff := cmp.Diff(b, again); err != nil || diff != "" {
			t.Error(err, diff)
		}
		c.Change(0, 2048)
		c.Mark()
	})
}
