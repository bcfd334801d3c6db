package migrate

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"sync"
	"time"
)

// Listener is where guests come to: a TCP or a unix socket.
type Listener interface {
	net.Listener
	SetDeadline(time.Time) error
}

// arrival is a stream with what it said first.
type arrival struct {
	*stream
	hello *hello
}

// gather accepts connections until one session has all its streams: a new one,
// or one that is resumed if that is named. The listener is left alone then.
func gather(ctx context.Context, l Listener, config *tls.Config, resumed string) (*hello, []*stream, error) {
	if err := l.SetDeadline(time.Time{}); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	arrivals := make(chan *arrival)
	ended := make(chan error, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	context.AfterFunc(ctx, func() { _ = l.SetDeadline(past) })
	wg.Go(func() { ended <- accept(ctx, l, config, arrivals, &wg) })
	waiting := map[string][]*arrival{}
	defer func() {
		for _, list := range waiting {
			for _, a := range list {
				a.Close()
			}
		}
	}()
	for {
		select {
		case err := <-ended:
			return nil, nil, err
		case a := <-arrivals:
			id := a.hello.Session
			if a.hello.Resume != (resumed != "") || resumed != "" && id != resumed {
				a.abort(errors.New("another guest is expected"))
				a.Close()
				continue
			}
			if len(waiting) >= maxStreams { // sources that began and went
				for _, list := range waiting {
					for _, a := range list {
						a.Close()
					}
				}
				clear(waiting)
			}
			// Of an attempt that was given up, a part may wait still.
			waiting[id] = slices.DeleteFunc(waiting[id], func(o *arrival) bool {
				old := o.hello.Stream == a.hello.Stream || o.hello.Streams != a.hello.Streams
				if old {
					o.Close()
				}
				return old
			})
			waiting[id] = append(waiting[id], a)
			first, streams := complete(waiting[id])
			if streams == nil {
				continue
			}
			delete(waiting, id)
			return first, streams, nil
		}
	}
}

// complete are a session's streams in order, if all are there.
func complete(list []*arrival) (first *hello, streams []*stream) {
	n := list[0].hello.Streams
	streams = make([]*stream, n)
	for _, a := range list {
		if a.hello.Streams == n && streams[a.hello.Stream] == nil {
			streams[a.hello.Stream] = a.stream
		}
		if a.hello.Stream == 0 {
			first = a.hello
		}
	}
	for _, s := range streams {
		if s == nil {
			return nil, nil
		}
	}
	return first, streams
}

// accept takes connections until there is no listener any more.
func accept(ctx context.Context, l Listener, config *tls.Config, arrivals chan<- *arrival, wg *sync.WaitGroup) error {
	places := make(chan struct{}, 2*maxStreams)
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		select {
		case places <- struct{}{}:
		default:
			c.Close()
			continue
		}
		wg.Go(func() {
			defer func() { <-places }()
			a, err := greet(ctx, c, config)
			if err != nil {
				c.Close()
				return
			}
			select {
			case arrivals <- a:
			case <-ctx.Done():
				c.Close()
			}
		})
	}
}

// greet hears what a connection says first.
func greet(ctx context.Context, c net.Conn, config *tls.Config) (*arrival, error) {
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(past) })
	defer stop()
	s, err := secure(ctx, c, config, tls.Server)
	if err != nil {
		return nil, err
	}
	h, err := s.readHello()
	if err != nil {
		s.abort(err)
		return nil, err
	}
	if !stop() {
		return nil, errors.New("nobody waits any more")
	}
	return &arrival{s, h}, nil
}
