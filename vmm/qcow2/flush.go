package qcow2

import "errors"

// batch is what one Flush writes: copies, while the tables go on to change.
type batch struct {
	counts, l2   []*table
	copies       map[*table][]byte
	refTable, l1 bool
	freed        []int64
}

// Flush implements blk.Disk.
func (i *Image) Flush() error {
	i.flushing.Lock()
	defer i.flushing.Unlock()
	b := i.collect()
	err := i.writeBatch(b)
	return errors.Join(err, i.settle(b, err))
}

// collect takes what has to be written.
func (i *Image) collect() *batch {
	i.mu.Lock()
	defer i.mu.Unlock()
	b := &batch{copies: map[*table][]byte{}, freed: i.freed}
	i.freed = nil
	take := func(t *table) bool {
		if !t.dirty {
			return false
		}
		t.dirty, t.written = false, true
		b.copies[t] = append([]byte(nil), t.bytes...)
		return true
	}
	for _, t := range i.counts.tables {
		if take(t) {
			b.counts = append(b.counts, t)
		}
	}
	for _, t := range i.l2.tables {
		if take(t) {
			b.l2 = append(b.l2, t)
		}
	}
	b.refTable, b.l1 = take(&i.refTable), take(&i.l1)
	return b
}

// writeBatch writes counts, then what uses what they count, then what leads
// there. Data are in the file already.
func (i *Image) writeBatch(b *batch) error {
	steps := [][]*table{b.counts, nil, b.l2, nil}
	if b.refTable {
		steps[1] = []*table{&i.refTable}
	}
	if b.l1 {
		steps[3] = []*table{&i.l1}
	}
	// What zeroes were kept room for has data now, which go first.
	if len(b.l2) > 0 && len(b.counts) == 0 && !b.refTable {
		if err := i.file.Flush(); err != nil {
			return err
		}
	}
	for _, tables := range steps {
		for _, t := range tables {
			if err := i.file.Writev([][]byte{b.copies[t]}, t.at); err != nil {
				return err
			}
		}
		if len(tables) > 0 {
			if err := i.file.Flush(); err != nil {
				return err
			}
		}
	}
	if len(b.copies) == 0 {
		return i.file.Flush()
	}
	return nil
}

// settle ends a Flush. What couldn't be written is to be written again; what
// was freed can be used again if nothing leads to it.
func (i *Image) settle(b *batch, failed error) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	for t := range b.copies {
		t.written = false
		t.dirty = t.dirty || failed != nil
	}
	if failed != nil {
		i.freed = append(i.freed, b.freed...)
		return nil
	}
	for _, k := range b.freed {
		if err := i.release(k); err != nil {
			return err
		}
		if err := i.file.Discard(k<<i.clusterBits, i.cluster()); err != nil {
			return err
		}
	}
	return nil
}

// Close writes all that is left, and leaves no cluster behind that nothing is
// in. The file stays open.
func (i *Image) Close() error {
	if i.readOnly {
		return nil
	}
	if err := i.Flush(); err != nil {
		return err
	}
	return i.Flush() // the counts of what the first has freed
}
