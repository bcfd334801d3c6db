package virtio

import (
	"errors"
	"os"
	"time"
)

// Work handles the requests of a queue in a goroutine of its own, as they
// come. handle returns how many bytes it wrote; an error of it, as one of the
// queue, is the guest's fault and stops the device. stop returns when nothing
// is being handled any more.
func (a Activation) Work(n int, handle func(*Chain) (uint32, error)) (stop func()) {
	q, kick := a.Queues[n], a.Kicks[n]
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := a.work(n, q, kick, handle); err != nil {
			a.Fail(err)
		}
	}()
	return func() {
		_ = kick.SetReadDeadline(time.Unix(1, 0))
		<-done
		_ = kick.SetReadDeadline(time.Time{})
	}
}

func (a Activation) work(n int, q *Queue, kick *os.File, handle func(*Chain) (uint32, error)) error {
	count := make([]byte, 8)
	for {
		// Requests may be there already: those before a restore, and those
		// that came while notifications were off.
		q.Notify(false)
		if err := a.drain(n, q, handle); err != nil {
			return err
		}
		q.Notify(true)
		if q.Pending() {
			continue
		}
		_, err := kick.Read(count)
		if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (a Activation) drain(n int, q *Queue, handle func(*Chain) (uint32, error)) error {
	for {
		c, err := q.Next()
		if err != nil || c == nil {
			return err
		}
		written, err := handle(c)
		if err != nil {
			return err
		}
		q.Done(c, written)
		if q.Interrupt() {
			a.Interrupt(n)
		}
	}
}
