package blk

import (
	"errors"
	"sync/atomic"
	"time"
)

// Count is what was done of one kind.
type Count struct {
	Requests, Bytes, Errors uint64
	// Time is what the requests took, added up.
	Time time.Duration
}

// Metrics are what a device has done since it was made.
type Metrics struct {
	Read, Write, Flush, Erase Count
	// LastError is the disk's last error, nil if there was none.
	LastError error
}

type counter struct{ requests, bytes, errors, nanoseconds atomic.Uint64 }

type metrics struct {
	read, write, flush, erase counter
	lastError                 atomic.Pointer[error]
}

func (m *metrics) count(r *request, err error) {
	var c *counter
	bytes := r.size
	switch r.kind() {
	case typeIn:
		c = &m.read
	case typeOut:
		c = &m.write
	case typeFlush:
		c = &m.flush
	case typeDiscard, typeWriteZeroes:
		c, bytes = &m.erase, 0
	default:
		return
	}
	c.requests.Add(1)
	c.nanoseconds.Add(uint64(time.Since(r.began)))
	if err != nil {
		c.errors.Add(1)
		m.failed(err)
		return
	}
	c.bytes.Add(uint64(bytes))
}

// failed keeps an error of the disk; others are the guest's own.
func (m *metrics) failed(err error) {
	if !errors.Is(err, errGuest) && !errors.Is(err, errUnsupported) {
		m.lastError.Store(&err)
	}
}

func (c *counter) load() Count {
	return Count{c.requests.Load(), c.bytes.Load(), c.errors.Load(), time.Duration(c.nanoseconds.Load())}
}

// Metrics returns the device's.
func (d *Device) Metrics() Metrics {
	m := Metrics{Read: d.metrics.read.load(), Write: d.metrics.write.load(), Flush: d.metrics.flush.load(), Erase: d.metrics.erase.load()}
	if e := d.metrics.lastError.Load(); e != nil {
		m.LastError = *e
	}
	return m
}
