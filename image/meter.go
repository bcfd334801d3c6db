package image

import (
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// meter adds up what is read of the layers and reports it, a few times a
// second at most.
type meter struct {
	p     Progress
	step  string
	total int64
	done  atomic.Int64

	mu   sync.Mutex
	next time.Time
}

const reportEvery = 100 * time.Millisecond

func (m *meter) reader(r io.Reader, size int64) io.Reader {
	if m.p == nil {
		return r
	}
	return &meteredReader{r: r, m: m, left: size}
}

type meteredReader struct {
	r    io.Reader
	m    *meter
	left int64
}

func (r *meteredReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if c := min(int64(n), r.left); c > 0 {
		r.left -= c
		r.m.add(c)
	}
	return n, err
}

func (m *meter) add(n int64) {
	done := m.done.Add(n)
	m.mu.Lock()
	now := time.Now()
	due := done == m.total || now.After(m.next)
	if due {
		m.next = now.Add(reportEvery)
	}
	m.mu.Unlock()
	if due {
		m.p(m.step, done, m.total)
	}
}
