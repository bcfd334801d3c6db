package disk

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
)

func open(t *testing.T, size int64) *Disk {
	t.Helper()
	d, err := Open(filepath.Join(t.TempDir(), "disk"), size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func write(t *testing.T, d *Disk, off int64, with byte, n int) {
	t.Helper()
	if _, err := d.WriteAt(bytes.Repeat([]byte{with}, n), off); err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, d *Disk, off int64, what byte, n int) {
	t.Helper()
	got := make([]byte, n)
	if _, err := d.ReadAt(got, off); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, bytes.Repeat([]byte{what}, n)) {
		t.Errorf("bytes from %d on are %x... and not %x", off, got[:8], what)
	}
}

func TestPowerLossDropsWhatWasNotFlushed(t *testing.T) {
	d := open(t, 1<<20)
	write(t, d, 0, 1, block)
	if err := d.Flush(); err != nil {
		t.Fatal(err)
	}
	write(t, d, 0, 2, sector)                  // over flushed data
	write(t, d, 8*block+sector, 2, 700*sector) // over several blocks
	want(t, d, 0, 2, sector)
	want(t, d, sector, 1, block-sector)
	if lost := d.LosePower(); lost != 701*sector {
		t.Errorf("lost %d bytes, wrote %d", lost, 701*sector)
	}
	want(t, d, 0, 1, block)
	want(t, d, 8*block, 0, 800*sector)
}

func TestForcedWriteIsSafeAloneAndOverEarlierOnes(t *testing.T) {
	d := open(t, 1<<20)
	write(t, d, 0, 1, 2*block)
	if err := d.WriteThrough(bytes.Repeat([]byte{2}, sector), sector); err != nil {
		t.Fatal(err)
	}
	want(t, d, 0, 1, sector)
	want(t, d, sector, 2, sector)
	d.LosePower()
	want(t, d, 0, 0, sector)
	want(t, d, sector, 2, sector)
	want(t, d, 2*sector, 0, block)
}

func TestZerosHideWhatWasWrittenBefore(t *testing.T) {
	d := open(t, 1<<20)
	write(t, d, 0, 1, 4*block)
	if err := d.Zero(sector, 2*block); err != nil {
		t.Fatal(err)
	}
	want(t, d, 0, 1, sector)
	want(t, d, sector, 0, 2*block)
	want(t, d, 2*block+sector, 1, 2*block-sector)
}

func TestFullCacheIsWrittenOut(t *testing.T) {
	d := open(t, 1<<20)
	d.limit = 2
	write(t, d, 0, 1, 3*block)
	if lost := d.LosePower(); lost != 0 {
		t.Errorf("lost %d bytes of a cache that was full", lost)
	}
	want(t, d, 0, 1, 3*block)
}

func TestDiskKeepsItsSizeAndContent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	d, err := Open(path, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	write(t, d, block, 7, block)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if d, err = Open(path, 1<<19); err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if d.Size() != 1<<20 {
		t.Errorf("it has %d bytes", d.Size())
	}
	want(t, d, block, 7, block)
}

func TestRequestsBeyondTheDiskAreRefused(t *testing.T) {
	d := open(t, 1<<20)
	for _, at := range [][2]int64{{-sector, sector}, {1 << 20, sector}, {1<<20 - sector, 2 * sector}, {1 << 62, sector}, {1, sector}, {0, 100}} {
		p := make([]byte, at[1])
		if _, err := d.ReadAt(p, at[0]); err == nil {
			t.Errorf("read %v", at)
		}
		if _, err := d.WriteAt(p, at[0]); err == nil {
			t.Errorf("wrote %v", at)
		}
		if d.Zero(at[0], at[1]) == nil || d.WriteThrough(p, at[0]) == nil {
			t.Errorf("changed %v", at)
		}
	}
}

// TestDiskIsWhatAModelIs holds the disk to two arrays: what is seen, and what
// is safe.
func TestDiskIsWhatAModelIs(t *testing.T) {
	const size = 16 * block
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 1))
			d := open(t, size)
			seen, safe := make([]byte, size), make([]byte, size)
			for step := range 400 {
				off := rng.IntN(size/sector) * sector
				p := make([]byte, (1+rng.IntN(min(20, (size-off)/sector)))*sector)
				for i := range p {
					p[i] = byte(rng.Uint32())
				}
				var err error
				switch rng.IntN(8) {
				case 0:
					err = d.Flush()
					copy(safe, seen)
				case 1:
					d.LosePower()
					copy(seen, safe)
				case 2:
					err = d.WriteThrough(p, int64(off))
					copy(seen[off:], p)
					copy(safe[off:], p)
				case 3:
					clear(p)
					err = d.Zero(int64(off), int64(len(p)))
					copy(seen[off:], p)
					copy(safe[off:], p)
				default:
					_, err = d.WriteAt(p, int64(off))
					copy(seen[off:], p)
				}
				if err != nil {
					t.Fatal(err)
				}
				got := make([]byte, size)
				if _, err := d.ReadAt(got, 0); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, seen) {
					t.Fatalf("after step %d it reads what was not written", step)
				}
			}
		})
	}
}
