package virtio

import (
	"errors"
	"os"
	"time"
)

// Watch calls drain in a goroutine of its own whenever queue n may have
// requests. drain takes them until there are none, or until stopping is
// closed; an error of it is the guest's fault and stops the device. stop
// closes stopping and returns when drain has.
func (a Activation) Watch(n int, drain func(stopping <-chan struct{}) error) (stop func()) {
	return a.start(n, func(stopping <-chan struct{}) error { return a.watch(n, stopping, drain) })
}

// OnKick calls f in a goroutine of its own, first and then for each time that
// the driver tells of queue n: for queues whose requests are room, and are
// taken when there is something for them. Who finds none turns Notify on and
// looks once more.
func (a Activation) OnKick(n int, f func() error) (stop func()) {
	return a.start(n, func(<-chan struct{}) error {
		for {
			if err := f(); err != nil {
				return err
			}
			if stopped, err := a.kicked(n, make([]byte, 8)); stopped || err != nil {
				return err
			}
		}
	})
}

// start runs a goroutine that waits for kicks of queue n until stop.
func (a Activation) start(n int, run func(stopping <-chan struct{}) error) (stop func()) {
	stopping, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		if err := run(stopping); err != nil {
			a.Fail(err)
		}
	}()
	kick := a.Kicks[n]
	return func() {
		close(stopping)
		_ = kick.SetReadDeadline(time.Unix(1, 0))
		<-done
		_ = kick.SetReadDeadline(time.Time{})
	}
}

func (a Activation) watch(n int, stopping <-chan struct{}, drain func(<-chan struct{}) error) error {
	q, count := a.Queues[n], make([]byte, 8)
	for {
		// Requests may be there already: those before a restore, and those
		// that came while notifications were off.
		q.Notify(false)
		if err := drain(stopping); err != nil {
			return err
		}
		q.Notify(true)
		if q.Pending() && !Closed(stopping) {
			continue
		}
		if stopped, err := a.kicked(n, count); stopped || err != nil {
			return err
		}
	}
}

// kicked waits for the driver.
func (a Activation) kicked(n int, count []byte) (stopped bool, err error) {
	_, err = a.Kicks[n].Read(count)
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, os.ErrClosed) {
		return true, nil
	}
	return false, err
}

// Closed tells whether a channel that nobody sends to is closed.
func Closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// Work handles the requests of a queue one after the other, as they come.
// handle returns how many bytes it wrote; an error of it, as one of the
// queue, is the guest's fault and stops the device. What it gets is valid
// until it returns. stop returns when nothing is being handled any more.
func (a Activation) Work(n int, handle func(*Chain) (uint32, error)) (stop func()) {
	var c Chain
	q := a.Queues[n]
	return a.Watch(n, func(stopping <-chan struct{}) error {
		for !Closed(stopping) {
			ok, err := q.Take(&c)
			if err != nil || !ok {
				return err
			}
			written, err := handle(&c)
			if err != nil {
				return err
			}
			q.Done(&c, written)
			if q.Interrupt() {
				a.Interrupt(n)
			}
		}
		return nil
	})
}
