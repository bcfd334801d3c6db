package vmm

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"sort"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/vmm/memory"
)

// SavedMemory is the memory of a snapshot in its files, for who brings it to a
// guest (package pages).
type SavedMemory struct {
	size   int64
	layers []layer // the newest first
}

// layer is what a snapshot has of the memory: its runs, or in the last one
// all.
type layer struct {
	files Files
	runs  []run
}

// OpenMemory checks a snapshot and those that it is based on, the oldest first,
// as Restore does. The files stay the caller's, and as they are.
func OpenMemory(layers ...Files) (*SavedMemory, error) {
	h, runs, err := readLayers(layers)
	if err != nil {
		return nil, err
	}
	s := &SavedMemory{size: int64(h.Memory + h.Pluggable)}
	for i := len(layers) - 1; i >= 0; i-- {
		s.layers = append(s.layers, layer{layers[i], runs[i]})
	}
	return s, nil
}

// readLayers reads the states of layers, the oldest first, and returns the last
// one and what each has of the memory.
func readLayers(layers []Files) (last *header, runs [][]run, err error) {
	if len(layers) == 0 {
		return nil, nil, errors.New("there is no snapshot")
	}
	for i, l := range layers {
		h, err := readState(l.State)
		if err == nil {
			err = h.follows(last)
		}
		if err == nil {
			err = h.fits(l.Memory)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("snapshot %d of %d: %w", i+1, len(layers), err)
		}
		last, runs = h, append(runs, h.Runs)
	}
	return last, runs, nil
}

// Size implements pages.Source.
func (s *SavedMemory) Size() int64 { return s.size }

// at is the layer that has a page, and how many from there on it has.
func (s *SavedMemory) at(page uint64) (from *layer, count uint64) {
	count = uint64(s.size)/memory.PageSize - page
	for i := range s.layers[:len(s.layers)-1] {
		l := &s.layers[i]
		n := sort.Search(len(l.runs), func(n int) bool { return l.runs[n].First+l.runs[n].Count > page })
		if n == len(l.runs) {
			continue
		}
		if r := l.runs[n]; r.First <= page {
			return l, min(count, r.First+r.Count-page)
		}
		count = min(count, l.runs[n].First-page)
	}
	return &s.layers[len(s.layers)-1], count
}

// ReadAt implements pages.Source.
func (s *SavedMemory) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) && off < s.size {
		l, count := s.at(uint64(off) / memory.PageSize)
		end := (off/memory.PageSize + int64(count)) * memory.PageSize
		part := p[n:min(int64(len(p)), int64(n)+end-off)]
		got, err := l.files.Memory.ReadAt(part, off)
		n, off = n+got, off+int64(got)
		if got < len(part) {
			return n, cmp.Or(err, io.ErrUnexpectedEOF)
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Data implements pages.Source.
func (s *SavedMemory) Data(off int64) (from, end int64, err error) {
	for off < s.size {
		l, count := s.at(uint64(off) / memory.PageSize)
		end := (off/memory.PageSize + int64(count)) * memory.PageSize
		if l.runs != nil {
			return off, end, nil
		}
		from, err := unix.Seek(int(l.files.Memory.Fd()), off, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO):
			from = s.size
		case err != nil:
			return 0, 0, fmt.Errorf("find out what of a guest's memory is used: %w", err)
		}
		if from < end {
			return from, end, nil
		}
		off = end
	}
	return s.size, s.size, nil
}
