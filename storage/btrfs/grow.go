package btrfs

import (
	"context"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/storage/internal/hostdisk"
)

// The kernel tells nobody that a file system fills up, so the grower looks,
// at moments chosen by how fast it could: a writer at writeRate that starts
// right after one look has not used up the headroom at the next. A look is
// two ioctls (about 5 µs).
const (
	writeRate  = 4 * api.GiB // per second, into the page cache
	soonest    = 100 * time.Millisecond
	latest     = 5 * time.Second
	leastStep  = 64 * api.MiB
	leastSpare = 256 * api.MiB
	mostSpare  = 8 * api.GiB
)

// headroom is how much the file system keeps free, on a disk with so much
// room: more on large disks, which are also the fast ones.
func headroom(room api.Bytes) api.Bytes {
	return min(max(room/64, leastSpare), mostSpare)
}

// grower extends a loop file before it is full, until stop.
type grower struct {
	file *loopFile
	poke chan struct{}
	stop context.CancelFunc
	done sync.WaitGroup
	err  atomic.Pointer[string] // why the last growth failed, for the status
}

func startGrower(file *loopFile) *grower {
	ctx, stop := context.WithCancel(context.Background())
	g := &grower{file: file, poke: make(chan struct{}, 1), stop: stop}
	g.done.Go(func() { g.run(ctx) })
	return g
}

func (g *grower) Close() {
	g.stop()
	g.done.Wait()
}

// look makes the grower look now.
func (g *grower) look() {
	select {
	case g.poke <- struct{}{}:
	default: // it is about to
	}
}

func (g *grower) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-g.poke:
		}
		free, err := g.file.grow()
		if err != nil {
			text := err.Error()
			g.err.Store(&text)
		} else {
			g.err.Store(nil)
		}
		timer.Reset(nextLook(free))
	}
}

// nextLook is when free bytes could be used up. With nothing left there is
// no hurry: either the pool has its full size, or others must free space
// on the disk first.
func nextLook(free api.Bytes) time.Duration {
	if free < leastStep {
		return latest
	}
	return min(max(time.Duration(free/(writeRate/1000))*time.Millisecond, soonest), latest)
}

// grow extends file, device and file system if less than the headroom is
// free, and returns what is free then (0 when it is short and can't grow).
func (l *loopFile) grow() (api.Bytes, error) {
	dir, err := os.Open(l.point)
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	total, allocated, err := deviceUse(dir)
	if err != nil {
		return 0, err
	}
	_, dataFree, err := spaceUse(dir)
	if err != nil {
		return 0, err
	}
	room, err := hostdisk.Room(l.file.Name())
	if err != nil {
		return 0, err
	}
	// Free space inside data chunks is no use to metadata, which needs
	// unallocated space: running out of that is running out of space.
	unallocated := api.Bytes(total - allocated)
	free, spare := unallocated+api.Bytes(dataFree), headroom(room)
	if free >= spare && unallocated >= spare/2 {
		return free, nil
	}
	step := min(max(2*spare-free, spare), room)
	if l.max > 0 {
		step = min(step, l.max-api.Bytes(total))
	}
	if step = step / api.MiB * api.MiB; step < leastStep {
		return 0, nil
	}
	st, err := l.file.Stat()
	if err != nil {
		return 0, err
	}
	size := st.Size() + int64(step)
	if err := hostdisk.Reserve(l.file, st.Size(), size); err != nil {
		return 0, err
	}
	if err := l.resize(size); err != nil {
		return 0, err
	}
	return free + step, nil
}
