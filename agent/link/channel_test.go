package link

import (
	"io"
	"sync"
	"testing"
)

// tube is one direction of a channel: a buffer that a writer waits for when it
// is full, as that of a FIFO.
type tube struct {
	mu     sync.Mutex
	cond   *sync.Cond
	buf    []byte
	closed bool
	// spoil changes what is written; nil leaves it.
	spoil func([]byte) []byte
	limit int
}

func newTube() *tube {
	w := &tube{limit: 64 << 10}
	w.cond = sync.NewCond(&w.mu)
	return w
}

func (w *tube) Write(p []byte) (int, error) {
	return w.write(p, func() bool { return false })
}

// write ends when its process is gone, wherever it is.
func (w *tube) write(p []byte, gone func() bool) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := len(p)
	if w.spoil != nil {
		p = w.spoil(append([]byte(nil), p...))
	}
	for len(p) > 0 {
		for len(w.buf) >= w.limit && !w.closed && !gone() {
			w.cond.Wait()
		}
		if w.closed || gone() {
			return 0, io.ErrClosedPipe
		}
		k := min(len(p), w.limit-len(w.buf))
		w.buf = append(w.buf, p[:k]...)
		p = p[k:]
		w.cond.Broadcast()
	}
	return n, nil
}

// leave puts p there whether there is room or not, as what is found there.
func (w *tube) leave(p []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf = append(w.buf, p...)
	w.cond.Broadcast()
}

func (w *tube) Read(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.buf) == 0 && !w.closed {
		w.cond.Wait()
	}
	if len(w.buf) == 0 {
		return 0, io.EOF
	}
	n := copy(p, w.buf)
	w.buf = w.buf[:copy(w.buf, w.buf[n:])]
	w.cond.Broadcast()
	return n, nil
}

func (w *tube) Close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	w.cond.Broadcast()
}

// line is a channel whose ends come and go as processes do: what one of them
// wrote stays on it.
type line struct{ toGuest, toHost *tube }

func newLine(t testing.TB) *line {
	l := &line{newTube(), newTube()}
	t.Cleanup(func() {
		l.toGuest.Close()
		l.toHost.Close()
	})
	return l
}

// end is one process's end of a line: closing it leaves the line.
type end struct {
	in, out *tube
	mu      sync.Mutex
	closed  bool
}

func (l *line) host() *end  { return &end{in: l.toHost, out: l.toGuest} }
func (l *line) guest() *end { return &end{in: l.toGuest, out: l.toHost} }

func (e *end) gone() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.closed
}

func (e *end) Read(p []byte) (int, error) {
	e.in.mu.Lock()
	defer e.in.mu.Unlock()
	for len(e.in.buf) == 0 && !e.in.closed && !e.gone() {
		e.in.cond.Wait()
	}
	if e.gone() || len(e.in.buf) == 0 {
		return 0, io.EOF
	}
	n := copy(p, e.in.buf)
	e.in.buf = e.in.buf[:copy(e.in.buf, e.in.buf[n:])]
	e.in.cond.Broadcast()
	return n, nil
}

func (e *end) Write(p []byte) (int, error) {
	return e.out.write(p, e.gone)
}

func (e *end) Close() error {
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	for _, w := range []*tube{e.in, e.out} {
		w.mu.Lock()
		w.cond.Broadcast()
		w.mu.Unlock()
	}
	return nil
}

// size is how much has been written and not read.
func (w *tube) size() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.buf)
}
