package compress

import (
	"io"
	"sync"
)

const (
	chunkSize = 512 << 10
	chunks    = 4
)

// Ahead reads a stream in a goroutine of its own, a few chunks ahead of its
// reader, so that decompressing and storing run on two processors. Each is
// called with every chunk, in order, by the goroutine that calls Read.
type Ahead struct {
	full  chan chunk
	free  chan []byte
	stop  chan struct{}
	once  sync.Once
	done  sync.WaitGroup
	each  func([]byte)
	cur   chunk
	begin []byte // of cur, to give it back
}

type chunk struct {
	data []byte
	err  error
}

// NewAhead begins to read r. Close must be called; r must not be used, nor
// closed, before it has returned.
func NewAhead(r io.Reader, each func([]byte)) *Ahead {
	a := &Ahead{
		full: make(chan chunk, chunks),
		free: make(chan []byte, chunks),
		stop: make(chan struct{}),
		each: each,
	}
	for range chunks {
		a.free <- nil
	}
	a.done.Go(func() { a.fill(r) })
	return a
}

func (a *Ahead) fill(r io.Reader) {
	for {
		var buf []byte
		select {
		case buf = <-a.free:
		case <-a.stop:
			return
		}
		if buf == nil {
			buf = make([]byte, chunkSize)
		}
		// Not io.ReadFull: it would make a stream that is cut off look like
		// one that ends.
		buf = buf[:chunkSize]
		var n int
		var err error
		for n < len(buf) && err == nil {
			var m int
			m, err = r.Read(buf[n:])
			n += m
		}
		a.full <- chunk{buf[:n], err} // has room for every buffer
		if err != nil {
			return
		}
	}
}

func (a *Ahead) Read(p []byte) (int, error) {
	for len(a.cur.data) == 0 {
		if a.cur.err != nil {
			return 0, a.cur.err
		}
		if a.begin != nil {
			a.free <- a.begin[:0]
		}
		a.cur = <-a.full
		a.begin = a.cur.data
		if a.each != nil && len(a.cur.data) > 0 {
			a.each(a.cur.data)
		}
	}
	n := copy(p, a.cur.data)
	a.cur.data = a.cur.data[n:]
	return n, nil
}

// Close waits until nothing reads r any more.
func (a *Ahead) Close() error {
	a.once.Do(func() { close(a.stop) })
	a.done.Wait()
	return nil
}
