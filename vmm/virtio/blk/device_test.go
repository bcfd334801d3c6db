package blk_test

import (
	"bytes"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/internal/loop"
	"github.com/cleave-project/cleave/vmm/virtio/blk"
)

// TestABlockDeviceIsADisk has a loop device with blocks of 4096 bytes.
func TestABlockDeviceIsADisk(t *testing.T) {
	for name, flags := range map[string]int{"cached": 0, "direct": unix.O_DIRECT} {
		t.Run(name, func(t *testing.T) {
			_, backing := openDisk(t, diskSize, 0)
			l, err := loop.Attach(t.Context(), backing)
			if err != nil {
				t.Skipf("a loop device: %v", err)
			}
			t.Cleanup(func() { l.Close() })
			f, err := os.OpenFile(l.Path(), os.O_RDWR|flags, 0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			disk, err := blk.NewFile(f)
			if err != nil {
				t.Fatal(err)
			}
			logical, _ := disk.Blocks()
			d := newDevice(t, disk, blk.Options{})
			g := plug(t, d)
			q := g.Queues[0]
			if got := g.Config(0, 8); got != diskSize/512 {
				t.Errorf("%d sectors", got)
			}
			if got := g.Config(20, 4); got != uint64(logical) {
				t.Errorf("blocks of %d bytes instead of %d", got, logical)
			}
			want := pattern(1<<20, 5)
			if s := write(q, 64, want); s != statusOK {
				t.Fatalf("status %d, %v", s, d.Metrics().LastError)
			}
			clear(want[8192:16384])
			clear(want[65536:131072])
			if s := erase(q, typeWriteZeroes, [3]uint64{64 + 16, 16, 0}); s != statusOK {
				t.Errorf("zeroes: status %d, %v", s, d.Metrics().LastError)
			}
			if s := erase(q, typeWriteZeroes, [3]uint64{64 + 128, 128, 1}); s != statusOK {
				t.Errorf("zeroes that unmap: status %d, %v", s, d.Metrics().LastError)
			}
			if s := erase(q, typeDiscard, [3]uint64{8192, 1024, 0}); s != statusOK {
				t.Errorf("discard: status %d, %v", s, d.Metrics().LastError)
			}
			if s := flush(q); s != statusOK {
				t.Errorf("flush: status %d", s)
			}
			if got, s := read(q, 64, len(want)); s != statusOK || !bytes.Equal(got, want) {
				t.Errorf("status %d, or other data", s)
			}
		})
	}
}
