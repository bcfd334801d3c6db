package blk

import (
	"sync"

	"github.com/cleave-project/cleave/vmm/virtio"
)

const (
	// maxWorkers is how many requests of a queue wait for the disk at once.
	maxWorkers = 32
	// signalEvery is after how many requests at the latest the driver is
	// interrupted for those that were done at once.
	signalEvery = 16
)

// queue is one at work: a goroutine that takes requests, and workers.
type queue struct {
	device     *Device
	activation virtio.Activation
	n          int
	stopWatch  func()
	jobs       chan *request // to workers that are idle
	workers    sync.WaitGroup
	started    int // of workers; the taker's

	mu   sync.Mutex // of giving back
	free []*request
}

func (d *Device) serve(a virtio.Activation, n int) *queue {
	q := &queue{device: d, activation: a, n: n, jobs: make(chan *request)}
	q.stopWatch = a.Watch(n, q.drain)
	return q
}

// stop returns when all that was taken was given back.
func (q *queue) stop() {
	q.stopWatch()
	close(q.jobs)
	q.workers.Wait()
}

// drain takes requests until there are none.
func (q *queue) drain(stopping <-chan struct{}) error {
	ring, unsignaled := q.activation.Queues[q.n], 0
	defer q.signal()
	for !virtio.Closed(stopping) {
		r := q.unused()
		ok, err := ring.Take(&r.chain)
		if err == nil && ok {
			err = r.parse()
		}
		if err != nil || !ok {
			q.keep(r)
			return err
		}
		if l := q.device.options.Limits; !l.Try(r.size) {
			q.signal() // of those done before: this may take long
			if !l.Take(stopping, r.size) {
				ring.PutBack()
				q.keep(r)
				return nil
			}
		}
		if !q.device.try(r) {
			q.hand(r)
			continue
		}
		q.giveBack(r)
		if unsignaled++; unsignaled%signalEvery == 0 {
			q.signal()
		}
	}
	return nil
}

// hand gives a request to a worker.
func (q *queue) hand(r *request) {
	select {
	case q.jobs <- r:
		return
	default:
	}
	if q.started < maxWorkers {
		q.started++
		q.workers.Go(func() { q.work(r) })
		return
	}
	q.signal() // of those done before: this may take long
	q.jobs <- r
}

func (q *queue) work(r *request) {
	for ok := true; ok; r, ok = <-q.jobs {
		q.device.do(r)
		q.giveBack(r)
		q.signal()
	}
}

func (q *queue) giveBack(r *request) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.activation.Queues[q.n].Done(&r.chain, r.wrote)
	q.free = append(q.free, r)
}

// signal interrupts the driver, if it wants that.
func (q *queue) signal() {
	q.mu.Lock()
	wanted := q.activation.Queues[q.n].Interrupt()
	q.mu.Unlock()
	if wanted {
		q.activation.Interrupt(q.n)
	}
}

func (q *queue) unused() *request {
	q.mu.Lock()
	defer q.mu.Unlock()
	if n := len(q.free); n > 0 {
		r := q.free[n-1]
		q.free = q.free[:n-1]
		return r
	}
	return new(request)
}

func (q *queue) keep(r *request) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.free = append(q.free, r)
}
