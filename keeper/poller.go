package keeper

import (
	"sync"

	"golang.org/x/sys/unix"
)

// poller calls a function when a descriptor becomes ready. One goroutine
// waits for all of them, so that an idle guest costs no goroutine: with the
// runtime's own poller it would take three, 8 KiB of stacks a guest.
//
// Each watch fires once and is silent until it is armed again, and each
// firing runs in its own goroutine. Both matter: a guest can stall whoever
// reads its FIFO for as long as it likes (pipe_write copies from user memory
// under the pipe's lock, and the guest may serve that memory from a FUSE file
// system), which must cost the keeper one goroutine and no more.
type poller struct {
	epoll int
	wake  int
	done  chan struct{}

	mu      sync.Mutex
	next    uint64
	watches map[uint64]*watch
}

type watch struct {
	poll   *poller
	key    uint64
	fd     int
	events uint32
	ready  func()
}

func newPoller() (*poller, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(epoll)
		return nil, err
	}
	p := &poller{epoll: epoll, wake: wake, done: make(chan struct{}), watches: make(map[uint64]*watch)}
	// Key 0 is the wake descriptor; watches count from 1.
	if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, wake, &unix.EpollEvent{Events: unix.EPOLLIN}); err != nil {
		unix.Close(epoll)
		unix.Close(wake)
		return nil, err
	}
	go p.run()
	return p, nil
}

func (p *poller) run() {
	defer close(p.done)
	events := make([]unix.EpollEvent, 64)
	for {
		n, err := unix.EpollWait(p.epoll, events, -1)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			// Nothing but a closed or foreign descriptor makes this fail.
			panic("keeper: epoll_wait: " + err.Error())
		}
		p.mu.Lock()
		for _, ev := range events[:n] {
			key := uint64(uint32(ev.Fd)) | uint64(uint32(ev.Pad))<<32
			if key == 0 {
				p.mu.Unlock()
				return
			}
			// A watch removed since the event was queued is not there.
			if w := p.watches[key]; w != nil {
				go w.ready()
			}
		}
		p.mu.Unlock()
	}
}

// close ends the poller's goroutine. Functions that it started may still run.
func (p *poller) close() {
	_, _ = unix.Write(p.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	<-p.done
	unix.Close(p.epoll)
	unix.Close(p.wake)
}

// add watches fd, which must stay open until remove.
func (p *poller) add(fd int, events uint32, ready func()) (*watch, error) {
	p.mu.Lock()
	p.next++
	w := &watch{poll: p, key: p.next, fd: fd, events: events | unix.EPOLLONESHOT, ready: ready}
	p.watches[w.key] = w
	p.mu.Unlock()
	if err := w.control(unix.EPOLL_CTL_ADD); err != nil {
		w.forget()
		return nil, err
	}
	return w, nil
}

// arm lets the watch fire again.
func (w *watch) arm() error { return w.control(unix.EPOLL_CTL_MOD) }

func (w *watch) remove() {
	w.forget()
	_ = unix.EpollCtl(w.poll.epoll, unix.EPOLL_CTL_DEL, w.fd, nil)
}

func (w *watch) forget() {
	w.poll.mu.Lock()
	delete(w.poll.watches, w.key)
	w.poll.mu.Unlock()
}

func (w *watch) control(op int) error {
	ev := unix.EpollEvent{Events: w.events, Fd: int32(uint32(w.key)), Pad: int32(uint32(w.key >> 32))}
	return unix.EpollCtl(w.poll.epoll, op, w.fd, &ev)
}
