package monitor

import (
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cleave-project/cleave/vmm"
	"github.com/cleave-project/cleave/vmm/control"
	"github.com/cleave-project/cleave/vmm/virtio/blk"
	"github.com/cleave-project/cleave/vmm/virtio/virtiotest"
)

const (
	changeBlock = blk.TrackedBlock
	changeSize  = 4096 * changeBlock
)

// changing is a monitor of one disk, of which the changes are kept in a file,
// one process of it after the other.
type changing struct {
	*Monitor
	t      *testing.T
	path   string // of the disk
	format string
	told   []string // to Notice
	queue  *virtiotest.Queue
}

func newChanging(t *testing.T) *changing {
	t.Helper()
	c := &changing{t: t, path: filepath.Join(t.TempDir(), "disk")}
	for _, name := range []string{c.path, c.path + ".changes"} {
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Truncate(c.path, changeSize); err != nil {
		t.Fatal(err)
	}
	return c
}

// begin is a process that has the disk.
func (c *changing) begin(lost string) {
	c.t.Helper()
	var files []*os.File
	for _, name := range []string{c.path, c.path + ".changes"} {
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			c.t.Fatal(err)
		}
		files = append(files, f)
	}
	d, err := newDisk(Disk{Disk: control.Disk{Name: "d", Format: c.format}, File: files[0], Changes: files[1]}, lost, func(err error) {
		c.told = append(c.told, err.Error())
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { d.close() })
	c.Monitor = &Monitor{devices: []*device{d}, machine: &vmm.Machine{}}
	guest := virtiotest.Plug(c.t, d.Device.Device)
	guest.Start(guest.Offered())
	c.queue = guest.Queues[0]
	c.t.Cleanup(guest.Reset)
}

// write has the guest write to a block.
func (c *changing) write(block int64) byte {
	c.t.Helper()
	header := make([]byte, 16)
	binary.LittleEndian.PutUint32(header, 1)
	binary.LittleEndian.PutUint64(header[8:], uint64(block)*changeBlock/512)
	return c.queue.Do([][]byte{header, make([]byte, 512)}, 1).Writable[0][0]
}

// end is the process's end in order.
func (c *changing) end() {
	c.machine = nil // which there is none of
	c.close()
}

func (c *changing) mark() string {
	c.t.Helper()
	m, err := c.MarkDisk(c.t.Context(), control.DiskMark{Name: "d"})
	if err != nil {
		c.t.Fatal(err)
	}
	return m.Mark
}

// since is what was changed since a mark, in numbers of blocks, or why that
// isn't known.
func (c *changing) since(mark string) (out [][2]int64, lost string) {
	c.t.Helper()
	got, err := control.AllChanged(c.t.Context(), c, control.DiskMark{Name: "d", Mark: mark})
	if err != nil {
		c.t.Fatal(err)
	}
	if got.Lost != "" {
		if diff := cmp.Diff([][2]int64{{0, got.Size}}, got.Ranges); diff != "" {
			c.t.Errorf("%s: %s", got.Lost, diff)
		}
		return nil, got.Lost
	}
	for _, r := range got.Ranges {
		out = append(out, [2]int64{r[0] / changeBlock, r[1] / changeBlock})
	}
	return out, ""
}

func (c *changing) isSince(mark string, want ...[2]int64) {
	c.t.Helper()
	got, lost := c.since(mark)
	if diff := cmp.Diff(want, got); diff != "" || lost != "" {
		c.t.Errorf("%s%s", lost, diff)
	}
}

func (c *changing) isLost(mark, why string) {
	c.t.Helper()
	if _, lost := c.since(mark); !strings.Contains(lost, why) || lost == "" {
		c.t.Errorf("%q instead of %q", lost, why)
	}
}

func TestChangesAreToldOverProcesses(t *testing.T) {
	c := newChanging(t)
	c.begin("")
	c.write(1)
	one := c.mark()
	c.write(3)
	c.write(4)
	c.end()
	c.begin("")
	two := c.mark()
	c.write(9)
	c.isSince(one, [2]int64{3, 2}, [2]int64{9, 1})
	c.isSince(two, [2]int64{9, 1})
	if err := c.ResizeDisk(t.Context(), control.ResizeDisk{Name: "d", Bytes: changeSize + 2*changeBlock}); err != nil {
		t.Fatal(err)
	}
	c.isSince(two, [2]int64{9, 1}, [2]int64{changeSize / changeBlock, 2})
	if err := c.ForgetMark(t.Context(), control.DiskMark{Name: "d", Mark: two}); err != nil {
		t.Error(err)
	}
	c.isLost(two, "forgotten")
	c.end()
	c.begin(cameHere)
	c.isLost(one, cameHere)
	if len(c.told) > 0 {
		t.Errorf("told %q", c.told)
	}
}

func TestManyChangesAreTold(t *testing.T) {
	c := newChanging(t)
	c.begin("")
	m := c.mark()
	var want [][2]int64
	for b := int64(0); b < changeSize/changeBlock; b += 2 {
		c.write(b)
		want = append(want, [2]int64{b, 1})
	}
	if len(want) <= control.MaxRanges {
		t.Fatalf("%d ranges are told at once", len(want))
	}
	c.isSince(m, want...)
}

func TestAGuestThatGoesElsewhereTakesItsMarks(t *testing.T) {
	for _, state := range []string{control.Gone, control.Undecided, control.Leaving, control.Following, control.Interrupted} {
		c := newChanging(t)
		c.begin("")
		m := c.mark()
		c.moves.now.State = state
		c.end()
		c.begin("")
		c.isLost(m, "elsewhere")
		m = c.mark()
		c.moves.now.State = control.Stayed
		c.end()
		c.begin("")
		c.isSince(m)
	}
}

// TestMarksOfADiskThatFailsAreLost has a disk refuse what is read behind its
// end, which another made nearer.
func TestMarksOfADiskThatFailsAreLost(t *testing.T) {
	c := newChanging(t)
	c.begin("")
	m := c.mark()
	d := c.find("d")
	if err := os.Truncate(c.path, changeBlock); err != nil {
		t.Fatal(err)
	}
	header := make([]byte, 16)
	binary.LittleEndian.PutUint64(header[8:], changeSize/512-1)
	c.queue.Do([][]byte{header}, 512, 1)
	if d.Device.Device.(*blk.Device).Metrics().LastError == nil {
		t.Fatal("the disk didn't fail")
	}
	c.end()
	if len(c.told) != 1 || !strings.Contains(c.told[0], "failed") {
		t.Errorf("told %q", c.told)
	}
	c.begin("")
	c.isLost(m, "failed")
}

func TestMarksOfAnImageAreKept(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip(err)
	}
	c := newChanging(t)
	c.format = control.FormatQCOW2
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", c.path, "256M").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	c.begin("")
	m := c.mark()
	if s := c.write(5); s != 0 {
		t.Fatalf("status %d", s)
	}
	c.end()
	c.begin("")
	c.isSince(m, [2]int64{5, 1})
	c.end()
	if out, err := exec.Command("qemu-img", "resize", "-q", c.path, "512M").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	c.begin("")
	c.isLost(m, "changed by another")
}

func TestWhatCantBeMarkedIsRefused(t *testing.T) {
	c := newChanging(t)
	c.begin("")
	ctx := t.Context()
	if _, err := c.MarkDisk(ctx, control.DiskMark{Name: "other"}); err == nil {
		t.Error("a disk that there isn't is marked")
	}
	if _, err := c.MarkDisk(ctx, control.DiskMark{Name: "d", Mark: "mine"}); err == nil {
		t.Error("a mark is named by who asks for it")
	}
	if _, err := c.Changed(ctx, control.ChangedSince{DiskMark: control.DiskMark{Name: "d", Mark: "mine"}}); err == nil {
		t.Error("what is no mark is taken for one")
	}
	c.end()
	if _, err := c.MarkDisk(ctx, control.DiskMark{Name: "d"}); err == nil {
		t.Error("a disk is marked without a guest")
	}
	f := backing(t, changeBlock)
	if _, err := newDisk(Disk{Disk: control.Disk{Name: "d", ReadOnly: true}, File: backing(t, changeBlock), Changes: f}, "", nil); err == nil {
		t.Error("changes of a disk are tracked that has none")
	}
	if f.Close() == nil {
		t.Error("its file stayed open")
	}
}
