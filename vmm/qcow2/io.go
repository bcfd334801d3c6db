package qcow2

import (
	"errors"
	"fmt"

	"github.com/cleave-project/cleave/vmm/virtio"
)

var (
	// errAbsent is an entry whose table isn't in memory.
	errAbsent = errors.New("the table isn't in memory")
	// errNoPlace is a cluster that data can't be written to where it is.
	errNoPlace = errors.New("the cluster has no place")
)

// extent is what sectors that follow each other are in: bytes of the file that
// do so too, or zeroes.
type extent struct {
	at   int64
	n    int64
	zero bool
}

// slot is which entry of which table describes an offset.
func (i *Image) slot(off int64) (n, k int64) {
	k = off >> i.clusterBits
	return k >> i.l2Bits(), k & (1<<i.l2Bits() - 1)
}

// entry is what describes the cluster at an offset, checked; mu is held.
func (i *Image) entry(off int64) (uint64, error) {
	n, k := i.slot(off)
	if i.l1.get(n)&entryOffset == 0 {
		return 0, nil
	}
	t := i.l2.find(n)
	if t == nil {
		return 0, errAbsent
	}
	e := t.get(k)
	return e, i.checkEntry(e)
}

// extent describes up to n bytes from an offset on; mu is held.
func (i *Image) extent(off, n int64) (extent, error) {
	e, err := i.entry(off)
	if err != nil {
		return extent{}, err
	}
	inside := off & (i.cluster() - 1)
	x := extent{at: int64(e&entryOffset) + inside, n: i.cluster() - inside, zero: hasNoData(e)}
	for x.n < n {
		e, err := i.entry(off + x.n)
		if err != nil || hasNoData(e) != x.zero || !x.zero && int64(e&entryOffset) != x.at+x.n {
			break // what is wrong with it is found by who comes there
		}
		x.n += i.cluster()
	}
	x.n = min(x.n, n)
	return x, nil
}

func hasNoData(e uint64) bool { return e&entryOffset == 0 || e&entryZero != 0 }

// fetch brings the table for an offset into memory.
func (i *Image) fetch(off int64) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	n, _ := i.slot(off)
	_, err := i.l2Table(n)
	return err
}

// cut is n bytes of pieces behind the first skip.
func cut(pieces [][]byte, skip, n int64) [][]byte {
	var out [][]byte
	for _, p := range pieces {
		if skip >= int64(len(p)) {
			skip -= int64(len(p))
			continue
		}
		p, skip = p[skip:], 0
		p = p[:min(int64(len(p)), n)]
		out = append(out, p)
		if n -= int64(len(p)); n == 0 {
			break
		}
	}
	return out
}

// Readv implements blk.Disk.
func (i *Image) Readv(pieces [][]byte, off int64) error {
	n := int64(virtio.Length(pieces))
	if err := i.check(off, n); err != nil {
		return err
	}
	for at := int64(0); at < n; {
		i.mu.RLock()
		done, err := i.read(pieces, at, off+at, n-at)
		i.mu.RUnlock()
		at += done
		if errors.Is(err, errAbsent) {
			err = i.fetch(off + at)
		}
		if err != nil {
			return fmt.Errorf("read %d bytes at %d of a qcow2 image: %w", n, off, err)
		}
	}
	return nil
}

// read reads what it can, and returns how much that was.
func (i *Image) read(pieces [][]byte, skip, off, n int64) (done int64, err error) {
	for done < n {
		x, err := i.extent(off+done, n-done)
		if err != nil {
			return done, err
		}
		part := pieces
		if skip+done > 0 || x.n < n {
			part = cut(pieces, skip+done, x.n)
		}
		if x.zero || x.at >= i.end {
			for _, p := range part {
				clear(p)
			}
		} else if err := i.readData(part, x); err != nil {
			return done, err
		}
		done += x.n
	}
	return done, nil
}

// readData reads an extent; behind the file's end are zeroes.
func (i *Image) readData(part [][]byte, x extent) error {
	if over := x.at + x.n - i.end; over > 0 {
		for _, p := range cut(part, x.n-over, over) {
			clear(p)
		}
		part = cut(part, 0, x.n-over)
	}
	return i.file.Readv(part, x.at)
}

// Writev implements blk.Disk.
func (i *Image) Writev(pieces [][]byte, off int64) error {
	n := int64(virtio.Length(pieces))
	if err := i.check(off, n); err != nil {
		return err
	}
	for at := int64(0); at < n; {
		i.mu.RLock()
		done, err := i.overwrite(pieces, at, off+at, n-at)
		i.mu.RUnlock()
		at += done
		switch {
		case errors.Is(err, errAbsent):
			err = i.fetch(off + at)
		case errors.Is(err, errNoPlace):
			done, err = i.place(pieces, at, off+at, n-at)
			at += done
		}
		if err != nil {
			return fmt.Errorf("write %d bytes at %d of a qcow2 image: %w", n, off, err)
		}
	}
	return i.relieve()
}

// relieve flushes when too much waits for that.
func (i *Image) relieve() error {
	i.mu.RLock()
	crowded := i.l2.crowded() || i.counts.crowded()
	i.mu.RUnlock()
	if !crowded {
		return nil
	}
	return i.Flush()
}

// overwrite writes to clusters that have their place, and returns how much
// that was.
func (i *Image) overwrite(pieces [][]byte, skip, off, n int64) (done int64, err error) {
	for done < n {
		x, err := i.extent(off+done, n-done)
		if err != nil {
			return done, err
		}
		if x.zero {
			return done, errNoPlace
		}
		if x.n, err = i.own(off+done, x.n); err != nil {
			return done, err
		}
		part := pieces
		if skip+done > 0 || x.n < n {
			part = cut(pieces, skip+done, x.n)
		}
		if err := i.file.Writev(part, x.at); err != nil {
			return done, err
		}
		done += x.n
	}
	return done, nil
}

// own is how much of an extent nothing else leads to.
func (i *Image) own(off, n int64) (int64, error) {
	first, _ := i.slot(off)
	if i.l1.get(first)&entryCopied == 0 {
		return 0, damaged("sectors at %d aren't only this disk's", off)
	}
	for done := int64(0); done < n; {
		e, err := i.entry(off + done)
		if err != nil {
			return 0, err
		}
		if e&entryCopied == 0 {
			if done > 0 {
				return done, nil
			}
			return 0, damaged("sectors at %d aren't only this disk's", off)
		}
		done += i.cluster() - (off+done)&(i.cluster()-1)
	}
	return n, nil
}

// maxPlaced bounds what gets its place at once: nothing else is done meanwhile.
const maxPlaced = int64(8 << 20)

// place writes to clusters that have no place yet, and gives them one: as many
// as come to lie behind each other. It returns how much of n that was.
func (i *Image) place(pieces [][]byte, skip, off, n int64) (done int64, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	tableN, first := i.slot(off)
	t, err := i.makeL2(tableN)
	if err != nil {
		return 0, err
	}
	inside := off & (i.cluster() - 1)
	most := min(1<<i.l2Bits()-first, (inside+n+i.cluster()-1)>>i.clusterBits, max(1, maxPlaced>>i.clusterBits))
	start, count, err := i.choose(t, first, most)
	if err != nil || count == 0 {
		return 0, err
	}
	done = min(n, count<<i.clusterBits-inside)
	all := [][]byte{i.zeroes[:inside]}
	all = append(all, cut(pieces, skip, done)...)
	all = append(all, i.zeroes[:count<<i.clusterBits-inside-done])
	if err := i.file.Writev(all, start<<i.clusterBits); err != nil {
		for k := range count {
			if hasNoCluster(t.get(first + k)) {
				err = errors.Join(err, i.release(start+k))
			}
		}
		return 0, err
	}
	for k := range count {
		t.set(first+k, uint64(start+k)<<i.clusterBits|entryCopied)
	}
	return done, nil
}

func hasNoCluster(e uint64) bool { return e&entryOffset == 0 }

// choose finds clusters for up to most entries from one on that have no data.
func (i *Image) choose(t *table, first, most int64) (start, count int64, err error) {
	for ; count < most; count++ {
		e := t.get(first + count)
		if err := i.checkEntry(e); err != nil {
			return 0, 0, err
		}
		if !hasNoData(e) {
			break // another had it placed meanwhile
		}
		if !hasNoCluster(e) && e&entryCopied == 0 {
			return 0, 0, damaged("a cluster at %#x that isn't only this disk's", e&entryOffset)
		}
		k, fresh := int64(e&entryOffset)>>i.clusterBits, hasNoCluster(e)
		if fresh {
			if k, err = i.allocate(); err != nil {
				break
			}
		}
		if count == 0 {
			start = k
		} else if k != start+count {
			if fresh {
				err = i.release(k)
			}
			break
		}
	}
	if count > 0 {
		err = nil // what was found is used, and the error met again
	}
	return start, count, err
}

// TryReadv is Readv if that can be done at once.
func (i *Image) TryReadv(pieces [][]byte, off int64) bool {
	return i.try(pieces, off, false)
}

// TryWritev is Writev if that can be done at once.
func (i *Image) TryWritev(pieces [][]byte, off int64) bool {
	return i.try(pieces, off, true)
}

func (i *Image) try(pieces [][]byte, off int64, write bool) bool {
	f, ok := i.file.(interface {
		TryReadv(pieces [][]byte, off int64) bool
		TryWritev(pieces [][]byte, off int64) bool
	})
	n := int64(virtio.Length(pieces))
	if !ok || i.check(off, n) != nil || !i.mu.TryRLock() {
		return false
	}
	defer i.mu.RUnlock()
	x, err := i.extent(off, n)
	if err != nil || x.n != n || x.zero {
		return false
	}
	if !write {
		return x.at+x.n <= i.end && f.TryReadv(pieces, x.at)
	}
	own, err := i.own(off, n)
	return err == nil && own == n && f.TryWritev(pieces, x.at)
}
