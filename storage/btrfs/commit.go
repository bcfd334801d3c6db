package btrfs

import (
	"os"
	"sync"
	"time"
)

// stuckAfter is when a requested commit is taken for forgotten.
const stuckAfter = time.Second

// committer commits the file system soon after each change, one commit for
// all changes that came during the one before, so that no call waits for the
// disk.
//
// START_SYNC has the kernel's own thread commit, which also wakes the
// cleaner that frees destroyed subvolumes; the thread would do neither for
// up to 30 seconds else. But it forgets a request that comes while it is
// committing, and START_SYNC then waits out those 30 seconds (seen on 6.18 in
// most bursts of two). A sync of the directory, in which subvolumes were
// just made or destroyed, commits at once and lets that call return.
// BTRFS_IOC_SYNC and syncfs are no way: they first write all data that
// guests have not synced yet.
type committer struct {
	dir  *os.File
	poke chan struct{}
	stop chan struct{}
	once sync.Once
	done sync.WaitGroup
}

func startCommitter(dir *os.File) *committer {
	c := &committer{dir: dir, poke: make(chan struct{}, 1), stop: make(chan struct{})}
	c.done.Go(c.run)
	return c
}

// soon makes what was done so far durable, soon.
func (c *committer) soon() {
	select {
	case c.poke <- struct{}{}:
	default: // a commit is about to begin
	}
}

func (c *committer) run() {
	for {
		select {
		case <-c.stop:
			return
		case <-c.poke:
		}
		// Errors show in the next call: btrfs turns read-only when it can't
		// commit.
		stuck := time.AfterFunc(stuckAfter, func() { _ = c.dir.Sync() })
		if transaction, err := startSync(c.dir); err == nil {
			_ = waitSync(c.dir, transaction)
		}
		stuck.Stop()
	}
}

// Close commits what is still to be committed. The directory must stay open
// until it returns.
func (c *committer) Close() {
	c.once.Do(func() {
		close(c.stop)
		_ = c.dir.Sync() // before the wait: it unsticks a request
	})
	c.done.Wait()
}
