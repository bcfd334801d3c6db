// Package blk is the block device (virtio 1.2, 5.2): a disk of sectors of 512
// bytes, over one or several queues.
//
// Features: SIZE_MAX, SEG_MAX, BLK_SIZE, TOPOLOGY, FLUSH, CONFIG_WCE; RO for a
// disk that is read-only, else DISCARD and WRITE_ZEROES; MQ for more than one
// queue. Secure erase, lifetime and zones aren't offered.
//
// Requests of a queue are worked on side by side: what the host has in memory
// at once, by the goroutine that takes requests, all else by workers, so that
// a flush keeps no read waiting. They complete in any order, as 5.2.6 allows.
// An error of the disk is VIRTIO_BLK_S_IOERR for the guest, and told by
// Metrics; a request without header or status stops the device until a reset.
//
// Saved is the cache mode that the driver has set. Limits, metrics and what a
// Tracker knows are the host's and aren't.
package blk

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cleave-project/cleave/vmm/ratelimit"
	"github.com/cleave-project/cleave/vmm/virtio"
)

// Features (5.2.3).
const (
	FeatureSizeMax     = 1 << 1
	FeatureSegMax      = 1 << 2
	FeatureReadOnly    = 1 << 5
	FeatureBlockSize   = 1 << 6
	FeatureFlush       = 1 << 9
	FeatureTopology    = 1 << 10
	FeatureConfigWCE   = 1 << 11
	FeatureMQ          = 1 << 12
	FeatureDiscard     = 1 << 13
	FeatureWriteZeroes = 1 << 14
)

const (
	// SectorSize is the unit of the protocol, whatever a disk's blocks are.
	SectorSize = 512
	queueSize  = 256
	// maxQueues is what can be asked for: Linux uses one for each CPU.
	maxQueues = 64
	// A request has a header and a status beside its segments, and no more
	// descriptors than a queue.
	maxSegments = queueSize - 2
	maxSegment  = 1 << 20
	// maxRequest bounds what one may move, whatever its pieces are: they may
	// all be the same memory.
	maxRequest = 1 << 30
	// maxRanges bounds a discard or a write of zeroes, maxRange each of its
	// ranges, in sectors.
	maxRanges = 32
	maxRange  = 1 << 22
)

// Disk is what a device keeps its sectors in. Offsets and sizes are in bytes,
// and within Size; methods are called from many goroutines at once. A write
// is on stable storage after a Flush that began when it had returned.
type Disk interface {
	// Size is how large the disk is now.
	Size() (int64, error)
	// Blocks are the sizes that it can be written in, and that it is best
	// written in: powers of two, 512 at least.
	Blocks() (logical, physical int)
	Readv(pieces [][]byte, off int64) error
	Writev(pieces [][]byte, off int64) error
	Flush() error
	// Discard says that a range isn't needed any more; it may do nothing.
	Discard(off, n int64) error
	// WriteZeroes has a range read as zeroes; unmap allows that it takes no
	// space any more.
	WriteZeroes(off, n int64, unmap bool) error
}

// quick is a Disk that can tell what it has at hand.
type quick interface {
	// TryReadv is Readv if that can be done at once, TryWritev alike; else
	// they return false, and the pieces, or the disk, may have been written
	// in part.
	TryReadv(pieces [][]byte, off int64) bool
	TryWritev(pieces [][]byte, off int64) bool
}

// Tracker hears what of a disk changes, for backups and replicas. It is told
// of each change twice, before it begins and after it has ended, so that one
// who starts to copy in between sees it in the old count or in the new one.
type Tracker interface {
	Change(off, n int64)
}

// Options of a device.
type Options struct {
	// Serial is the disk's serial number, up to 20 bytes of ASCII (5.2.6).
	Serial   string
	ReadOnly bool
	// Queues is 1 if it is 0.
	Queues int
	// Limits may be nil.
	Limits *ratelimit.Limiter
}

// Device is a block device.
type Device struct {
	disk    Disk
	options Options

	sectors   atomic.Uint64
	writeback atomic.Bool // cache mode, as the driver has set it
	metrics   metrics

	trackers atomic.Pointer[[]Tracker] // nil for none

	mu      sync.Mutex
	queues  []*queue // at work
	changed func()   // tells the driver of another capacity; nil while idle
}

// New returns a device for a disk.
func New(disk Disk, o Options) (*Device, error) {
	if o.Queues == 0 {
		o.Queues = 1
	}
	if o.Queues < 0 || o.Queues > maxQueues {
		return nil, fmt.Errorf("block device with %d queues: 1 to %d are possible", o.Queues, maxQueues)
	}
	if len(o.Serial) > idSize {
		return nil, fmt.Errorf("serial number %q has more than %d bytes", o.Serial, idSize)
	}
	d := &Device{disk: disk, options: o}
	d.writeback.Store(true)
	if err := d.measure(); err != nil {
		return nil, err
	}
	return d, nil
}

// Track has t hear of changes from now on: also of those that have begun, when
// they end.
func (d *Device) Track(t Tracker) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []Tracker
	if old := d.trackers.Load(); old != nil {
		list = slices.Clone(*old)
	}
	list = append(list, t)
	d.trackers.Store(&list)
}

// Untrack ends what Track began. A change that is about to be told still may
// be.
func (d *Device) Untrack(t Tracker) {
	d.mu.Lock()
	defer d.mu.Unlock()
	old := d.trackers.Load()
	if old == nil {
		return
	}
	list := slices.DeleteFunc(slices.Clone(*old), func(o Tracker) bool { return o == t })
	d.trackers.Store(&list)
	if len(list) == 0 {
		d.trackers.Store(nil)
	}
}

// measure reads the disk's size.
func (d *Device) measure() error {
	size, err := d.disk.Size()
	if err != nil {
		return fmt.Errorf("measure the disk: %w", err)
	}
	logical, _ := d.disk.Blocks()
	if size%int64(logical) != 0 {
		return fmt.Errorf("a disk of %d bytes: not a multiple of its blocks of %d", size, logical)
	}
	d.sectors.Store(uint64(size) / SectorSize)
	return nil
}

// Resized is to be called when the disk has another size: the driver is told.
func (d *Device) Resized() error {
	before := d.sectors.Load()
	if err := d.measure(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.changed != nil && d.sectors.Load() != before {
		d.changed()
	}
	return nil
}

// Type implements virtio.Device.
func (*Device) Type() uint16 { return virtio.TypeBlock }

// Features implements virtio.Device.
func (d *Device) Features() uint64 {
	f := uint64(FeatureSizeMax | FeatureSegMax | FeatureBlockSize | FeatureTopology | FeatureFlush | FeatureConfigWCE)
	if d.options.ReadOnly {
		f |= FeatureReadOnly
	} else {
		f |= FeatureDiscard | FeatureWriteZeroes
	}
	if d.options.Queues > 1 {
		f |= FeatureMQ
	}
	return f
}

// Queues implements virtio.Device.
func (d *Device) Queues() []uint16 {
	sizes := make([]uint16, d.options.Queues)
	for i := range sizes {
		sizes[i] = queueSize
	}
	return sizes
}

// Where the driver sets the cache mode, and how long the registers are (5.2.4).
const (
	regWriteback = 32
	configSize   = 60
)

// ReadConfig implements virtio.Device.
func (d *Device) ReadConfig(offset uint64, data []byte) {
	c := d.config()
	virtio.ReadRegisters(c[:], offset, data)
}

func (d *Device) config() (c [configSize]byte) {
	le := binary.LittleEndian
	logical, physical := d.disk.Blocks()
	le.PutUint64(c[0:], d.sectors.Load())
	le.PutUint32(c[8:], maxSegment)
	le.PutUint32(c[12:], maxSegments)
	le.PutUint32(c[20:], uint32(logical))
	c[24] = byte(bits.Len(uint(physical/logical)) - 1)
	le.PutUint16(c[26:], uint16(physical/logical)) // suggested least I/O, in blocks
	if d.writeback.Load() {
		c[regWriteback] = 1
	}
	le.PutUint16(c[34:], uint16(d.options.Queues))
	if !d.options.ReadOnly {
		le.PutUint32(c[36:], maxRange)
		le.PutUint32(c[40:], maxRanges)
		le.PutUint32(c[44:], uint32(physical/SectorSize)) // alignment of discards
		le.PutUint32(c[48:], maxRange)
		le.PutUint32(c[52:], maxRanges)
		c[56] = 1 // zeroes may unmap
	}
	return c
}

// WriteConfig implements virtio.Device: the cache mode can be set.
func (d *Device) WriteConfig(offset uint64, data []byte) {
	if offset == regWriteback && len(data) == 1 {
		d.writeback.Store(data[0] != 0)
	}
}

// Activate implements virtio.Device.
func (d *Device) Activate(a virtio.Activation) error {
	if a.Features&FeatureFlush == 0 {
		// A driver that can't flush has writes that stay (5.2.5.2, 5.2.6.2).
		d.writeback.Store(false)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.changed = a.ConfigChanged
	for n := range a.Queues {
		if a.Queues[n] != nil {
			d.queues = append(d.queues, d.serve(a, n))
		}
	}
	return nil
}

// Pause implements virtio.Device: it waits for the disk.
func (d *Device) Pause() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.changed = nil
	for _, q := range d.queues {
		q.stop()
	}
	d.queues = nil
}

// Reset implements virtio.Device.
func (d *Device) Reset() { d.writeback.Store(true) }

// state is what is saved.
type state struct {
	Version   int
	Writeback bool
}

// Save implements virtio.Device.
func (d *Device) Save() ([]byte, error) {
	return json.Marshal(state{1, d.writeback.Load()})
}

// Restore implements virtio.Device.
func (d *Device) Restore(b []byte) error {
	var s state
	if err := virtio.Unmarshal(b, "a block device", 1, &s); err != nil {
		return err
	}
	d.writeback.Store(s.Writeback)
	return nil
}
