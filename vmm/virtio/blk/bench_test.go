package blk_test

import (
	"math/rand/v2"
	"testing"

	"github.com/cleave-project/cleave/vmm/virtio"
	"github.com/cleave-project/cleave/vmm/virtio/blk"
	"github.com/cleave-project/cleave/vmm/virtio/virtiotest"
)

// bench keeps a number of reads in flight, each of some bytes in pages.
func bench(b *testing.B, depth, size int, next func() uint64) {
	disk, _ := openDisk(b, 256<<20, 0)
	if err := disk.WriteZeroes(0, 256<<20, false); err != nil {
		b.Fatal(err)
	}
	g := virtiotest.Plug(b, newDevice(b, disk, blk.Options{}))
	g.Start(g.Offered() | virtio.FeatureIndirect | virtio.FeatureEventIndex)
	q := g.Queues[0]
	q.Indirect = true
	pages := make([]int, size/4096, size/4096+1)
	for i := range pages {
		pages[i] = 4096
	}
	pages = append(pages, 1)
	ring := make([]*virtiotest.Request, depth)
	for i := range ring {
		ring[i] = q.Make([][]byte{header(typeIn, next())}, pages...)
	}
	b.SetBytes(int64(size))
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		r := ring[i%depth]
		if i >= depth {
			q.Wait(r)
			copy(r.Readable[0], header(typeIn, next()))
		}
		q.Add(r)
		q.Kick()
		i++
	}
	for range min(i, depth) {
		q.Wait(ring[i%depth])
		i++
	}
}

func random() func() uint64 {
	r := rand.New(rand.NewPCG(1, 2))
	return func() uint64 { return r.Uint64N(256<<20/4096) * 8 }
}

func sequential(size int) func() uint64 {
	at := uint64(0)
	return func() uint64 {
		at = (at + uint64(size)/512) % (256<<20/512 - uint64(size)/512)
		return at
	}
}

func BenchmarkRandomRead4K(b *testing.B)       { bench(b, 32, 4096, random()) }
func BenchmarkRandomRead4KAlone(b *testing.B)  { bench(b, 1, 4096, random()) }
func BenchmarkSequentialRead128K(b *testing.B) { bench(b, 8, 128<<10, sequential(128<<10)) }
