package image

import (
	"context"
	"sync"

	"github.com/cleave-project/cleave/api"
)

// flights lets callers that want the same work done share one doing of it.
// The work ends early only when the last of them has given up.
type flights struct {
	mu   sync.Mutex
	open map[string]*flight
}

type flight struct {
	cancel  context.CancelFunc
	done    chan struct{}
	img     *api.Image
	err     error
	waiting map[int]Progress // guarded by flights.mu
	next    int
	last    report
}

type report struct {
	step        string
	done, total int64
}

// share joins the flight named key or starts it.
func (s *Store) share(ctx context.Context, key string, p Progress, work func(context.Context, Progress) (*api.Image, error)) (*api.Image, error) {
	fs := &s.flights
	fs.mu.Lock()
	f := fs.open[key]
	if f == nil {
		fctx, end, err := s.began(context.WithoutCancel(ctx))
		if err != nil {
			fs.mu.Unlock()
			return nil, err
		}
		fctx, cancel := context.WithCancel(fctx)
		f = &flight{cancel: cancel, done: make(chan struct{}), waiting: map[int]Progress{}}
		if fs.open == nil {
			fs.open = map[string]*flight{}
		}
		fs.open[key] = f
		go func() {
			defer end()
			defer cancel()
			img, err := work(fctx, func(step string, done, total int64) { fs.report(f, report{step, done, total}) })
			fs.mu.Lock()
			if fs.open[key] == f {
				delete(fs.open, key)
			}
			fs.mu.Unlock()
			f.img, f.err = img, err
			close(f.done)
		}()
	}
	me := f.next
	f.next++
	f.waiting[me] = p
	last := f.last
	fs.mu.Unlock()
	if p != nil && last.step != "" {
		p(last.step, last.done, last.total)
	}

	select {
	case <-f.done:
		if f.err != nil {
			return nil, f.err
		}
		img := *f.img
		img.Config = cloneConfig(img.Config)
		return &img, nil
	case <-ctx.Done():
		fs.leave(key, f, me)
		return nil, within("wait for the image", ctx.Err())
	}
}

// leave takes a caller out. Without callers the work is cancelled and its
// end awaited, so that nothing of it is left when the last has returned.
func (fs *flights) leave(key string, f *flight, me int) {
	fs.mu.Lock()
	delete(f.waiting, me)
	alone := len(f.waiting) == 0
	if alone && fs.open[key] == f {
		delete(fs.open, key) // who comes now starts anew
	}
	fs.mu.Unlock()
	if alone {
		f.cancel()
		<-f.done
	}
}

func (fs *flights) report(f *flight, r report) {
	fs.mu.Lock()
	f.last = r
	listeners := make([]Progress, 0, len(f.waiting))
	for _, p := range f.waiting {
		if p != nil {
			listeners = append(listeners, p)
		}
	}
	fs.mu.Unlock()
	for _, p := range listeners {
		p(r.step, r.done, r.total)
	}
}

// keyed is a set of locks by name.
type keyed struct {
	mu   sync.Mutex
	held map[string]chan struct{}
}

// lock waits for a name; unlock must be called.
func (k *keyed) lock(ctx context.Context, name string) (unlock func(), err error) {
	for {
		k.mu.Lock()
		if k.held == nil {
			k.held = map[string]chan struct{}{}
		}
		ch, taken := k.held[name]
		if !taken {
			ch = make(chan struct{})
			k.held[name] = ch
			k.mu.Unlock()
			return func() {
				k.mu.Lock()
				delete(k.held, name)
				k.mu.Unlock()
				close(ch)
			}, nil
		}
		k.mu.Unlock()
		select {
		case <-ch:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
