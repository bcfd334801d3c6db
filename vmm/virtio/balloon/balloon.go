// Package balloon is the memory balloon (virtio 1.2, 5.5): memory that the
// guest gives back, because it was asked to, or because it doesn't use it.
//
// Features: STATS_VQ, PAGE_REPORTING, PAGE_POISON, and DEFLATE_ON_OOM if the
// options say so. Pages in the balloon, and those reported as free, are
// discarded at once; a guest that uses one again gets one of zeroes. Pages
// that a guest wants to find poisoned (5.5.6.6) aren't discarded when they are
// reported. A guest that names pages it doesn't have is stopped.
//
// Queues are numbered as Linux and QEMU do, without gaps for those whose
// feature isn't negotiated.
//
// Saved are how large the balloon is to be and is, and the poison.
package balloon

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"github.com/cleave-project/cleave/vmm/memory"
	"github.com/cleave-project/cleave/vmm/virtio"
)

// Features (5.5.3).
const (
	FeatureStats        = 1 << 1
	FeatureDeflateOnOOM = 1 << 2
	FeaturePoison       = 1 << 4
	FeatureReporting    = 1 << 5
)

const (
	queueSize = 128
	inflate   = 0
	deflate   = 1
	optional  = 2 // the first of those that there may be
	// pageSize is the unit of all numbers (5.5.6).
	pageSize = memory.PageSize
)

// Options of a device.
type Options struct {
	// DeflateOnOOM lets the guest take memory back before it has to end
	// something for want of it.
	DeflateOnOOM bool
}

// Stats are what the guest says of its memory, in bytes or times; what it
// doesn't say is 0.
type Stats struct {
	SwappedIn, SwappedOut      uint64
	MajorFaults, MinorFaults   uint64
	Free, Total                uint64
	Available, Caches          uint64
	HugeAllocated, HugeRefused uint64
}

// Metrics are what was given back, in bytes, since the device was made.
type Metrics struct{ Inflated, Reported uint64 }

// Device is a balloon.
type Device struct {
	options Options

	mu             sync.Mutex
	target, actual uint32        // pages
	moved          chan struct{} // closed when actual is another
	poison         uint32
	metrics        Metrics
	active         *virtio.Activation
	stops          []func()

	// Of the queue of statistics: held is the driver's buffer, that asks for
	// new ones when it is given back.
	held  *virtio.Chain
	heldQ int // 0 if there is no such queue
	stats Stats
	fresh chan struct{} // closed when there are new ones
}

// New returns an empty balloon.
func New(o Options) *Device {
	return &Device{options: o, fresh: make(chan struct{}), moved: make(chan struct{})}
}

// Type implements virtio.Device.
func (*Device) Type() uint16 { return virtio.TypeBalloon }

// Features implements virtio.Device.
func (d *Device) Features() uint64 {
	f := uint64(FeatureStats | FeaturePoison | FeatureReporting)
	if d.options.DeflateOnOOM {
		f |= FeatureDeflateOnOOM
	}
	return f
}

// Queues implements virtio.Device.
func (*Device) Queues() []uint16 { return []uint16{queueSize, queueSize, queueSize, queueSize} }

// Where the driver writes (5.5.4).
const (
	regActual  = 4
	regPoison  = 12
	configSize = 16
)

// ReadConfig implements virtio.Device.
func (d *Device) ReadConfig(offset uint64, data []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var c [configSize]byte
	le := binary.LittleEndian
	le.PutUint32(c[0:], d.target)
	le.PutUint32(c[regActual:], d.actual)
	le.PutUint32(c[regPoison:], d.poison)
	virtio.ReadRegisters(c[:], offset, data)
}

// WriteConfig implements virtio.Device.
func (d *Device) WriteConfig(offset uint64, data []byte) {
	if len(data) != 4 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch v := binary.LittleEndian.Uint32(data); offset {
	case regActual:
		d.actual = v
		close(d.moved)
		d.moved = make(chan struct{})
	case regPoison:
		d.poison = v
	}
}

// SetTarget asks the guest to give so many bytes, in all. It does as soon as
// it can, or never.
func (d *Device) SetTarget(bytes uint64) error {
	pages := bytes / pageSize
	if pages > 1<<32-1 {
		return fmt.Errorf("a balloon of %d bytes: at most %d are possible", bytes, uint64(1<<32-1)*pageSize)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.target == uint32(pages) {
		return nil
	}
	d.target = uint32(pages)
	if d.active != nil {
		d.active.ConfigChanged()
	}
	return nil
}

// Size is how many bytes the guest is to give, and how many it has given as
// it says.
func (d *Device) Size() (target, actual uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return uint64(d.target) * pageSize, uint64(d.actual) * pageSize
}

// Wait returns when the guest has given as much as it is to give.
func (d *Device) Wait(ctx context.Context) error {
	for {
		d.mu.Lock()
		target, actual, moved := d.target, d.actual, d.moved
		d.mu.Unlock()
		if actual >= target {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("the guest has given %d of %d MiB: %w", actual>>8, target>>8, ctx.Err())
		}
	}
}

// Metrics returns the device's.
func (d *Device) Metrics() Metrics {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.metrics
}

// ErrNoStats says that the guest doesn't tell of its memory.
var ErrNoStats = errors.New("the guest has no driver at work that tells of its memory")

// Stats asks the guest about its memory.
func (d *Device) Stats(ctx context.Context) (Stats, error) {
	d.mu.Lock()
	if d.active == nil || d.heldQ == 0 {
		d.mu.Unlock()
		return Stats{}, ErrNoStats
	}
	if c := d.held; c != nil {
		d.held = nil
		q := d.active.Queues[d.heldQ]
		q.Done(c, 0)
		if q.Interrupt() {
			d.active.Interrupt(d.heldQ)
		}
	}
	fresh := d.fresh
	d.mu.Unlock()
	select {
	case <-fresh:
	case <-ctx.Done():
		return Stats{}, fmt.Errorf("ask the guest about its memory: %w", ctx.Err())
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stats, nil
}

// Activate implements virtio.Device.
func (d *Device) Activate(a virtio.Activation) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.active, d.heldQ, d.stops = &a, 0, nil
	if a.Queues[inflate] != nil {
		d.stops = append(d.stops, a.Work(inflate, func(c *virtio.Chain) (uint32, error) { return 0, d.inflate(a.Memory, c) }))
	}
	if a.Queues[deflate] != nil {
		// What is used again comes by itself.
		d.stops = append(d.stops, a.Work(deflate, func(*virtio.Chain) (uint32, error) { return 0, nil }))
	}
	next := optional
	if a.Features&FeatureStats != 0 {
		if a.Queues[next] != nil {
			d.heldQ = next
			d.stops = append(d.stops, a.OnKick(next, d.takeStats))
		}
		next++
	}
	if a.Features&FeatureReporting != 0 && a.Queues[next] != nil {
		// Poison is set before the driver is ready (5.5.6.6.1).
		keep := a.Features&FeaturePoison != 0 && d.poison != 0
		d.stops = append(d.stops, a.Work(next, func(c *virtio.Chain) (uint32, error) { return 0, d.report(a.Memory, c, keep) }))
	}
	return nil
}

// Pause implements virtio.Device.
func (d *Device) Pause() {
	for _, stop := range d.stops {
		stop()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.held != nil {
		d.active.Queues[d.heldQ].PutBack()
		d.held = nil
	}
	d.active, d.stops = nil, nil
}

// Reset implements virtio.Device: the guest has all of its memory again.
func (d *Device) Reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.actual, d.poison = 0, 0
}

type state struct {
	Version                int
	Target, Actual, Poison uint32
}

// Save implements virtio.Device.
func (d *Device) Save() ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return json.Marshal(state{1, d.target, d.actual, d.poison})
}

// Restore implements virtio.Device.
func (d *Device) Restore(b []byte) error {
	var s state
	if err := virtio.Unmarshal(b, "a balloon", 1, &s); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.target, d.actual, d.poison = s.Target, s.Actual, s.Poison
	return nil
}
