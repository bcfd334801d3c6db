package migrate

import (
	"errors"
	"fmt"
	"io"
)

// sink finds what a frame is for, and checks that it lies in it.
func (r *receiver) sink(h *head, size uint64) (Sink, error) {
	if int(h.volume) >= len(r.sinks) {
		return nil, broken("volume %d of %d", h.volume, len(r.sinks))
	}
	s := r.sinks[h.volume]
	if all := uint64(s.Size()); size == 0 || h.offset > all || size > all-h.offset {
		return nil, broken("%d bytes at %#x of a volume of %d", size, h.offset, all)
	}
	return s, nil
}

func (r *receiver) data(s *stream, h *head, buf []byte) error {
	to, err := r.sink(h, uint64(h.length))
	if err != nil {
		return err
	}
	b := buf[:h.length]
	if _, err := io.ReadFull(s.in, b); err != nil {
		return fmt.Errorf("read a frame: %w", err)
	}
	if _, err := to.WriteAt(b, int64(h.offset)); err != nil {
		return errors.Join(errPlace, err)
	}
	return nil
}

func (r *receiver) zero(h *head) error {
	if h.length != 0 {
		return broken("zeroes that have %d bytes", h.length)
	}
	to, err := r.sink(h, h.size)
	if err != nil {
		return err
	}
	if err := to.Zero(int64(h.offset), int64(h.size)); err != nil {
		return errors.Join(errPlace, err)
	}
	return nil
}

// comesLater takes note of what comes when the guest runs.
func (r *receiver) comesLater(h *head) error {
	to, err := r.sink(h, h.size)
	if err != nil {
		return err
	}
	later, ok := to.(LaterSink)
	if !ok || !r.mayFollow[h.volume] || h.length != 0 {
		return broken("volume %d can't come later", h.volume)
	}
	r.later.Store(true)
	if err := later.Later(int64(h.offset), int64(h.size)); err != nil {
		return errors.Join(errPlace, err)
	}
	return nil
}

// errPlace is that the destination can't keep what came.
var errPlace = errors.New("write what came")
