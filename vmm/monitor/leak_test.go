package monitor

import (
	"os"
	"runtime"
	"strconv"
	"testing"

	"github.com/cleave-project/cleave/vmm/control"
	"github.com/cleave-project/cleave/vmm/internal/tiny"
)

// use is what a process holds.
type use struct {
	files, goroutines int
	heap              uint64 // bytes
}

func used(t *testing.T) use {
	t.Helper()
	for range 2 { // what has a finalizer is freed by the second
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return use{len(files), runtime.NumGoroutine(), m.HeapAlloc}
}

func TestDevicesThatLeftHoldNothing(t *testing.T) {
	var c tiny.Code
	here := len(c)
	c.In32(slots, scratch)
	c.Until(scratch, 1<<4, here) // behind rng, balloon and disk
	c.Out8(serial, 1)
	here = len(c)
	c.In32(slots+4, scratch)
	c.Until(scratch, 1<<4, here)
	c.Out32(slots+8, 1<<4)
	c.Jump(0)
	r := run(t, Config{Kernel: kernel(t, c), Disks: []Disk{{Disk: control.Disk{Name: "d"}, File: backing(t, 1<<20)}}})
	ctx := t.Context()
	disk := backing(t, 1<<20)
	rounds := func(n int) use {
		for i := range n {
			if err := r.AddDisk(ctx, control.Disk{Name: "hot", Queues: 2}, disk, nil); err != nil {
				t.Fatalf("round %d: %v", i, err)
			}
			r.wait(t, 1)
			if err := r.Remove(ctx, control.Remove{Name: "hot"}); err != nil {
				t.Fatalf("round %d: %v", i, err)
			}
		}
		return used(t)
	}
	before := rounds(50)
	most := 2000
	if n, err := strconv.Atoi(os.Getenv("CLEAVE_TEST_PLUGS")); err == nil {
		most = n
	}
	after := rounds(most)
	if after.files > before.files || after.goroutines > before.goroutines || after.heap > before.heap+uint64(most)*256 {
		t.Errorf("%d disks came and left, and %+v became %+v", most, before, after)
	}
	if err := r.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	<-r.ended
}
