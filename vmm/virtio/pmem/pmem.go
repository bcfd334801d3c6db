// Package pmem is the persistent memory device (virtio 1.2, 5.19): a range of
// the guest's addresses that is a file of the host, whose page cache the guest
// then needs no copy of. The machine maps the file there, for reading only if
// the guest must not write it; the device tells the guest where, and flushes.
//
// No features. Saved is the range, which has to be there after a restore.
package pmem

import (
	"encoding/binary"
	"encoding/json"
	"fmt"

	"github.com/cleave-project/cleave/vmm/virtio"
)

const (
	queueSize = 64
	// Align is what a range must be a multiple of: Linux takes memory in
	// sections of 128 MiB, and maps them by pages of 2 MiB.
	Align = 2 << 20
)

// Options of a device.
type Options struct {
	// Start and Size are the range.
	Start, Size uint64
	// Flush has what was written stay. Nil is for a file that isn't.
	Flush func() error
}

// Device is persistent memory.
type Device struct {
	options Options
	stop    func()
}

// New returns a device.
func New(o Options) (*Device, error) {
	if o.Size == 0 || o.Start%Align != 0 || o.Size%Align != 0 || o.Start+o.Size < o.Start {
		return nil, fmt.Errorf("persistent memory of %d bytes at %#x: multiples of %d are needed", o.Size, o.Start, Align)
	}
	return &Device{options: o}, nil
}

// Type implements virtio.Device.
func (*Device) Type() uint16 { return virtio.TypePmem }

// Features implements virtio.Device.
func (*Device) Features() uint64 { return 0 }

// Queues implements virtio.Device.
func (*Device) Queues() []uint16 { return []uint16{queueSize} }

// ReadConfig implements virtio.Device (5.19.4).
func (d *Device) ReadConfig(offset uint64, data []byte) {
	var c [16]byte
	binary.LittleEndian.PutUint64(c[0:], d.options.Start)
	binary.LittleEndian.PutUint64(c[8:], d.options.Size)
	virtio.ReadRegisters(c[:], offset, data)
}

// WriteConfig implements virtio.Device.
func (*Device) WriteConfig(uint64, []byte) {}

// Activate implements virtio.Device.
func (d *Device) Activate(a virtio.Activation) error {
	d.stop = func() {}
	if a.Queues[0] != nil {
		d.stop = a.Work(0, d.handle)
	}
	return nil
}

// handle answers a request: 0, or -1 if it couldn't be done (5.19.7).
func (d *Device) handle(c *virtio.Chain) (uint32, error) {
	var kind, answer [4]byte
	if _, ok := virtio.Pull(c.Readable, kind[:]); !ok || virtio.Length(c.Writable) < len(answer) {
		return 0, fmt.Errorf("%w: a request without type, or without room for its answer", virtio.ErrQueue)
	}
	const flush = 0
	failed := binary.LittleEndian.Uint32(kind[:]) != flush
	if !failed && d.options.Flush != nil {
		failed = d.options.Flush() != nil
	}
	if failed {
		binary.LittleEndian.PutUint32(answer[:], ^uint32(0))
	}
	virtio.Push(c.Writable, answer[:])
	return uint32(len(answer)), nil
}

// Pause implements virtio.Device.
func (d *Device) Pause() { d.stop() }

// Reset implements virtio.Device: there is nothing to forget.
func (*Device) Reset() {}

type state struct {
	Version     int
	Start, Size uint64
}

// Save implements virtio.Device.
func (d *Device) Save() ([]byte, error) {
	return json.Marshal(state{1, d.options.Start, d.options.Size})
}

// Restore implements virtio.Device.
func (d *Device) Restore(b []byte) error {
	var s state
	if err := virtio.Unmarshal(b, "persistent memory", 1, &s); err != nil {
		return err
	}
	if want := (state{1, d.options.Start, d.options.Size}); s != want {
		return fmt.Errorf("state of persistent memory: %d bytes at %#x, and there are %d at %#x", s.Size, s.Start, want.Size, want.Start)
	}
	return nil
}
