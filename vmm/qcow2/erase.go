package qcow2

import "fmt"

// Discard implements blk.Disk: whole clusters lose their place.
func (i *Image) Discard(off, n int64) error { return i.erase(off, n, true, false) }

// WriteZeroes implements blk.Disk.
func (i *Image) WriteZeroes(off, n int64, unmap bool) error { return i.erase(off, n, unmap, true) }

// erase goes through a range table by table, so that others get their turn.
func (i *Image) erase(off, n int64, unmap, zero bool) error {
	if err := i.check(off, n); err != nil {
		return err
	}
	perTable := i.cluster() << i.l2Bits()
	for end := off + n; off < end; {
		next := min(end, (off/perTable+1)*perTable)
		if err := i.eraseIn(off, next, unmap, zero); err != nil {
			return fmt.Errorf("erase %d bytes at %d of a qcow2 image: %w", next-off, off, err)
		}
		off = next
	}
	return i.relieve()
}

// eraseIn erases what one table describes.
func (i *Image) eraseIn(off, end int64, unmap, zero bool) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	tableN, _ := i.slot(off)
	t, err := i.l2Table(tableN)
	if err != nil || t == nil {
		return err // what has no table reads as zeroes
	}
	if i.l1.get(tableN)&entryCopied == 0 {
		return damaged("a table at %#x that isn't only this disk's", t.at)
	}
	for off < end {
		next := min(end, off&^(i.cluster()-1)+i.cluster())
		_, k := i.slot(off)
		whole := off&(i.cluster()-1) == 0 && (next-off == i.cluster() || next == i.size)
		if err := i.eraseCluster(t, k, off, next, whole && unmap, zero); err != nil {
			return err
		}
		off = next
	}
	return nil
}

func (i *Image) eraseCluster(t *table, k, off, end int64, drop, zero bool) error {
	e := t.get(k)
	if err := i.checkEntry(e); err != nil || hasNoCluster(e) {
		return err
	}
	switch {
	case e&entryCopied == 0:
		return damaged("a cluster at %#x that isn't only this disk's", e&entryOffset)
	case drop:
		t.set(k, 0)
		i.freed = append(i.freed, int64(e&entryOffset)>>i.clusterBits)
	case zero && !hasNoData(e):
		return i.file.WriteZeroes(int64(e&entryOffset)+off&(i.cluster()-1), end-off, false)
	}
	return nil
}
