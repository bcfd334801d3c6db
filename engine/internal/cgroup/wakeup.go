package cgroup

import (
	"context"

	"golang.org/x/sys/unix"
)

// wake turns the end of a context into a readable descriptor, for poll(2).
type wake struct {
	r    int
	stop func() bool
	done chan struct{}
}

func wakeup(ctx context.Context) (*wake, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, err
	}
	w := &wake{r: fd, done: make(chan struct{})}
	w.stop = context.AfterFunc(ctx, func() {
		defer close(w.done)
		_, _ = unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	})
	return w, nil
}

// Close ends the watch and then the descriptor, never the other way round.
func (w *wake) Close() {
	if !w.stop() {
		<-w.done
	}
	unix.Close(w.r)
}
