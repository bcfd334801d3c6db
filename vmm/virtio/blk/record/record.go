// Package record keeps what of a disk was changed since marks that were made
// (blk.Changes) in a file, over the end of the process that has the disk.
//
// What it says is the truth or that it doesn't know. While a process has the
// disk the file is without marks, on stable storage before the guest's first
// write: whatever ends the process or the host, nothing that is old is found.
// An end in order writes the marks (Keep), with which state of the disk's file
// they are of: its inode and the time of its last change (ctime). Whoever
// writes to that file meanwhile has changed the time, which no program can set.
// Only writes of another that were not synced when the host lost its power may
// go unnoticed.
//
// A mark is a random number: one of a record that was lost, or that went
// another way after the disk was set back to a state of before, is never taken
// for one that is known.
//
// A Record may be used from any goroutine, but for Keep, which is the last call.
package record

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"

	"github.com/cleave-project/cleave/vmm/virtio/blk"
)

// MaxMarks bounds how many marks a disk has. Each takes memory, and makes
// Since slower.
const MaxMarks = 32

// Record is a Tracker of a disk.
type Record struct {
	*blk.Changes
	file *os.File // nil for none
	disk *os.File
	lost string // why marks of before aren't known, if they are not

	mu    sync.Mutex // of the marks' number, and of what is in the file
	inUse bool       // the file says so
}

// Open reads what a file has of a disk of some size, in bytes, of which the
// content is in another, and has it say that the disk is in use. Without a file
// marks are known as long as the process lives. The files stay the caller's.
//
// What is no record isn't written over. One that can't be relied on is told by
// Since.
func Open(file, disk *os.File, size int64) (*Record, error) {
	r := &Record{file: file, disk: disk, Changes: blk.NewChanges()}
	if file == nil {
		r.lost = "no record of changes is kept beyond the end of the process"
		return r, nil
	}
	b, err := read(file, size)
	if err != nil {
		return nil, fmt.Errorf("read the record of changes: %w", err)
	}
	spans, err := known(b, disk, size)
	switch {
	case errors.Is(err, errForeign):
		return nil, fmt.Errorf("read the record of changes: %w", err)
	case err != nil:
		r.lost = err.Error()
	default:
		r.Changes = blk.NewChanges(spans...)
	}
	return r, r.begin(len(b) > 0)
}

// New is Open for a disk that was changed elsewhere in a way that nobody
// knows: marks of before aren't known, for the reason that it is given.
func New(file, disk *os.File, size int64, lost string) (*Record, error) {
	r, err := Open(file, disk, size)
	if err == nil {
		r.Changes, r.lost = blk.NewChanges(), lost
	}
	return r, err
}

// known is what bytes of a record tell, of a disk as it is now.
func known(b []byte, disk *os.File, size int64) ([]blk.Span, error) {
	of, spans, err := decode(b)
	if err != nil {
		return nil, err
	}
	now, err := stateOf(disk)
	if err != nil {
		return nil, err
	}
	now.Size = size
	if now != of {
		return nil, errors.New("the disk was changed by another since its last guest ended")
	}
	return spans, nil
}

// begin has the file say that the disk is in use. What it had must be gone
// before the disk is written.
func (r *Record) begin(had bool) error {
	if !had {
		return nil
	}
	err := r.file.Truncate(0)
	if err == nil {
		err = r.file.Sync()
	}
	if err == nil {
		err = r.use()
	}
	if err != nil {
		return fmt.Errorf("note in the record of changes that the disk is in use: %w", err)
	}
	return nil
}

// use notes it in an empty file, for who wonders about an end without order. It
// needn't last: an empty file has no marks either. r.mu is held, or nobody else
// has r.
func (r *Record) use() error {
	if r.file == nil || r.inUse {
		return nil
	}
	_, err := r.file.WriteAt([]byte(magic), 0)
	r.inUse = err == nil
	return err
}

// Mark makes a mark.
func (r *Record) Mark() (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.Marks() >= MaxMarks {
		return "", fmt.Errorf("the disk has %d marks, which is the most: forget some that nobody needs", MaxMarks)
	}
	if err := r.use(); err != nil {
		return "", fmt.Errorf("note in the record of changes that the disk has marks: %w", err)
	}
	return fmt.Sprintf("%016x", r.Changes.Mark()), nil
}

// Since returns what of a disk of some size was changed since a mark. lost is
// empty, or why nobody knows: then anything may have changed.
func (r *Record) Since(mark string, size int64) (ranges []blk.Range, lost string, err error) {
	n, err := parse(mark)
	if err != nil {
		return nil, "", err
	}
	ranges, ok := r.Changes.Since(n)
	if !ok {
		if r.lost != "" {
			return nil, "marks of before aren't known: " + r.lost, nil
		}
		return nil, "the mark was forgotten, or made for another disk or another state of this one", nil
	}
	for k := len(ranges) - 1; k >= 0; k-- {
		if ranges[k].Size = min(ranges[k].Size, size-ranges[k].Offset); ranges[k].Size > 0 {
			break
		}
		ranges = ranges[:k]
	}
	return ranges, "", nil
}

// Forget forgets a mark. One that isn't known is no error.
func (r *Record) Forget(mark string) error {
	n, err := parse(mark)
	if err == nil {
		r.Changes.Forget(n)
	}
	return err
}

// parse is what a mark says.
func parse(mark string) (uint64, error) {
	n, err := strconv.ParseUint(mark, 16, 64)
	if err != nil || len(mark) != 16 {
		return 0, fmt.Errorf("%q is no mark of a disk's changes", mark)
	}
	return n, nil
}

// Keep writes the marks to the file, if there are any, when nothing writes to
// the disk any more. Without it, and after an error, they are lost.
func (r *Record) Keep(size int64) error {
	if r.file == nil || !r.inUse {
		return nil
	}
	if r.Marks() == 0 {
		return r.file.Truncate(0)
	}
	if err := r.keep(size); err != nil {
		return errors.Join(fmt.Errorf("keep the record of changes: %w", err), r.file.Truncate(0))
	}
	return nil
}

func (r *Record) keep(size int64) error {
	// All of it, also the time of its last change.
	if err := r.disk.Sync(); err != nil {
		return err
	}
	of, err := settled(r.disk)
	if err != nil {
		return err
	}
	of.Size = size
	if _, err := r.file.WriteAt(encode(of, r.Spans()), 0); err != nil {
		return err
	}
	return r.file.Sync()
}

// read reads a record, as much as one of a disk of some size can be.
func read(f *os.File, size int64) ([]byte, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, errForeign
	}
	// One byte more tells of what is too long, whose sum is wrong.
	return io.ReadAll(io.NewSectionReader(f, 0, min(st.Size(), mostBytes(size)+1)))
}
