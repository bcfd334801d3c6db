package console

import (
	"errors"
	"os"
	"time"

	"github.com/cleave-project/cleave/vmm/virtio"
)

// source is what a queue to the guest is fed from: it waits until there is
// something, and puts it into a buffer of the driver's. It returns how much,
// and false without any when stopping was closed. A buffer may be nil: then it
// only waits.
type source func(stopping <-chan struct{}, buffer [][]byte) (n int, ok bool)

// feed gives a driver's buffers back with what a source has, in a goroutine of
// its own. A buffer lies in the queue until there is something for it, so
// unlike with Activation.Watch both are waited for.
func feed(a virtio.Activation, n int, s source) (stop func()) {
	stopping, done := make(chan struct{}), make(chan struct{})
	kick := a.Kicks[n]
	go func() {
		defer close(done)
		if err := feedQueue(a, n, s, stopping); err != nil {
			a.Fail(err)
		}
	}()
	return func() {
		close(stopping)
		_ = kick.SetReadDeadline(time.Unix(1, 0))
		<-done
		_ = kick.SetReadDeadline(time.Time{})
	}
}

func feedQueue(a virtio.Activation, n int, s source, stopping <-chan struct{}) error {
	q, count := a.Queues[n], make([]byte, 8)
	var c virtio.Chain
	for {
		if _, ok := s(stopping, nil); !ok {
			return nil
		}
		q.Notify(false)
		ok, err := q.Take(&c)
		if err != nil {
			return err
		}
		if ok {
			written, ok := s(stopping, c.Writable)
			if !ok {
				q.PutBack()
				return nil
			}
			q.Done(&c, uint32(written))
			if q.Interrupt() {
				a.Interrupt(n)
			}
			continue
		}
		q.Notify(true)
		if q.Pending() {
			continue
		}
		_, err = a.Kicks[n].Read(count)
		if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
