package vmm

import (
	"fmt"

	"github.com/cleave-project/cleave/vmm/memory"
)

// Image is the guest's memory as a volume that is sent or received, in the
// order of its file.
type Image struct{ machine *Machine }

// Image is the memory of the machine that moves.
func (v *Move) Image() Image { return Image{v.machine} }

// Name implements migrate.Volume.
func (Image) Name() string { return "memory" }

// Size implements migrate.Volume.
func (i Image) Size() int64 { return int64(i.machine.memory.FileSize()) }

// Blank implements migrate.Sink.
func (Image) Blank() bool { return true }

// each calls f with the pieces of memory that a part of the file is.
func (i Image) each(off, n int64, f func(b []byte) error) error {
	for n > 0 {
		b := i.machine.inFile(uint64(off) / memory.PageSize)
		skip := off % memory.PageSize
		if int64(len(b)) <= skip {
			return fmt.Errorf("%d bytes at %#x of the memory's file: %w", n, off, memory.ErrOutside)
		}
		b = b[skip:]
		b = b[:min(n, int64(len(b)))]
		if err := f(b); err != nil {
			return err
		}
		off, n = off+int64(len(b)), n-int64(len(b))
	}
	return nil
}

// ReadAt implements migrate.Volume.
func (i Image) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	err := i.each(off, int64(len(p)), func(b []byte) error { n += copy(p[n:], b); return nil })
	return n, err
}

// WriteAt implements migrate.Sink.
func (i Image) WriteAt(p []byte, off int64) (int, error) {
	if i.machine.awaiting {
		return len(p), i.machine.absent.Came(off, int64(len(p)), p)
	}
	n := 0
	err := i.each(off, int64(len(p)), func(b []byte) error { n += copy(b, p[n:]); return nil })
	return n, err
}

// Zero implements migrate.Sink.
func (i Image) Zero(off, n int64) error {
	if i.machine.awaiting {
		return i.machine.absent.Came(off, n, nil)
	}
	return i.each(off, n, func(b []byte) error { clear(b); return nil })
}

// MayFollow implements migrate.Follower.
func (Image) MayFollow() bool { return true }

// Later implements migrate.LaterSink.
func (i Image) Later(off, n int64) error { return i.machine.absent.Later(off, n) }

// Await implements migrate.LaterSink.
func (i Image) Await(want func(Part)) error {
	m := i.machine
	m.awaiting = true
	return m.absent.Begin(m.faults, func(off, n int64) { want(Part{off, n}) }, func(err error) { go m.finish(End{}, err) })
}

// Missing implements migrate.LaterSink.
func (i Image) Missing() (out []Part) {
	_ = i.machine.absent.Missing(func(off, n int64) error { out = append(out, Part{off, n}); return nil })
	return out
}

// Abandon implements migrate.LaterSink.
func (i Image) Abandon() { i.machine.absent.Abandon() }

// Left implements pages.Sink.
func (i Image) Left() int64 { return i.machine.Absent() }

// Lost ends the machine: what is left of its memory doesn't come.
func (i Image) Lost(err error) { i.machine.finish(End{}, err) }

// Flush implements migrate.Sink: memory is gone with its host.
func (Image) Flush() error { return nil }

// Part is a part of the file.
type Part struct{ Offset, Size int64 }

// Begin has it noted what is written, and is what there is.
func (i Image) Begin() ([]Part, error) {
	if err := i.machine.logDirty(true); err != nil {
		return nil, err
	}
	var out []Part
	for _, r := range i.machine.memory.Regions() {
		for off := uint64(0); off < uint64(len(r.Host)); {
			from, end, err := i.machine.data(&r, off)
			if err != nil {
				return nil, err
			}
			if end > from {
				out = append(out, Part{r.Offset + int64(from), int64(end - from)})
			}
			off = end
		}
	}
	return out, nil
}

// Written is what was written since Begin, or the last call.
func (i Image) Written() ([]Part, error) {
	p, err := i.machine.takeDirty()
	if err != nil {
		return nil, err
	}
	var out []Part
	for _, r := range i.machine.runs(p) {
		out = append(out, Part{int64(r.First) * memory.PageSize, int64(r.Count) * memory.PageSize})
	}
	return out, nil
}

// End ends what Begin began.
func (i Image) End() error { return i.machine.logDirty(false) }
