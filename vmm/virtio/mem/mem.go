// Package mem is the memory device (virtio 1.2, 5.15): memory that a guest
// gets and gives back while it runs, in blocks that it chooses.
//
// The blocks are those of a range of the guest's memory that isn't announced
// as RAM. All are unplugged at first; the host says how much is to be plugged
// (SetRequested), and the driver plugs and unplugs until it is. What it
// unplugs is discarded.
//
// Feature: UNPLUGGED_INACCESSIBLE. That a guest leaves alone what it hasn't
// plugged is for Options.Access to enforce; without it, what a hostile guest
// takes in all is bounded by the size of the range, and by the host's limits
// for the process.
//
// Saved are which blocks are plugged, and how much is to be. A reset by the
// driver changes none of it (5.15.5.2).
package mem

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/cleave-project/cleave/vmm/virtio"
)

// FeatureInaccessible is VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE (5.15.3).
const FeatureInaccessible = 1 << 1

const (
	queueSize = 64
	// BlockSize is that of a block: of a huge page, which Linux asks for.
	BlockSize = 2 << 20
	// slack is how much more than is asked for is usable, for a driver whose
	// units are larger: Linux has sections of 128 MiB.
	slack = 256 << 20
	// maxBlocks bounds the range: 8 TiB.
	maxBlocks = 4 << 20
)

// Options of a device.
type Options struct {
	// Addr and Size are the range: multiples of BlockSize.
	Addr, Size uint64
	// Access is called before blocks are plugged, and after they were
	// unplugged; it may be nil. An error refuses what the guest asked for.
	Access func(addr, size uint64, plugged bool) error
}

// Device is a memory device.
type Device struct {
	options Options
	discard func(addr, size uint64) error // while active

	mu                sync.Mutex
	blocks            []bool // which are plugged
	plugged           uint64 // bytes
	requested, usable uint64
	changed           func() // nil while idle
	stop              func()
	moved             chan struct{} // closed, and made anew, when plugged changes
}

// New returns a device with nothing plugged.
func New(o Options) (*Device, error) {
	if o.Size == 0 || o.Addr%BlockSize != 0 || o.Size%BlockSize != 0 || o.Size/BlockSize > maxBlocks || o.Addr+o.Size < o.Addr {
		return nil, fmt.Errorf("memory device with %d bytes at %#x: multiples of %d are needed, and no more than %d of them", o.Size, o.Addr, BlockSize, maxBlocks)
	}
	return &Device{options: o, blocks: make([]bool, o.Size/BlockSize), usable: min(o.Size, slack), moved: make(chan struct{})}, nil
}

// SetRequested says how many bytes are to be plugged. The driver follows as
// far as it can.
func (d *Device) SetRequested(size uint64) error {
	if size%BlockSize != 0 || size > d.options.Size {
		return fmt.Errorf("%d bytes of a memory device: multiples of %d up to %d are possible", size, BlockSize, d.options.Size)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.requested == size {
		return nil
	}
	d.requested = size
	d.usable = max(d.usable, min(d.options.Size, size+slack)) // it never shrinks
	if d.changed != nil {
		d.changed()
	}
	return nil
}

// Size is how many bytes are to be plugged, and how many are.
func (d *Device) Size() (requested, plugged uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.requested, d.plugged
}

// Wait returns when as much is plugged as was asked for.
func (d *Device) Wait(ctx context.Context) error {
	for {
		d.mu.Lock()
		requested, plugged, moved := d.requested, d.plugged, d.moved
		d.mu.Unlock()
		if plugged == requested {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("the guest has plugged %d of %d MiB: %w", plugged>>20, requested>>20, ctx.Err())
		}
	}
}

// Renew has nothing plugged, since the machine that the device is in begins
// anew. It is idle.
func (d *Device) Renew() {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.blocks)
	d.plugged, d.usable = 0, min(d.options.Size, d.requested+slack)
}

// Type implements virtio.Device.
func (*Device) Type() uint16 { return virtio.TypeMem }

// Features implements virtio.Device.
func (*Device) Features() uint64 { return FeatureInaccessible }

// Queues implements virtio.Device.
func (*Device) Queues() []uint16 { return []uint16{queueSize} }

// ReadConfig implements virtio.Device (5.15.4).
func (d *Device) ReadConfig(offset uint64, data []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var c [56]byte
	le := binary.LittleEndian
	for i, v := range []uint64{BlockSize, 0, d.options.Addr, d.options.Size, d.usable, d.plugged, d.requested} {
		le.PutUint64(c[8*i:], v)
	}
	virtio.ReadRegisters(c[:], offset, data)
}

// WriteConfig implements virtio.Device: nothing can be written.
func (*Device) WriteConfig(uint64, []byte) {}

// Activate implements virtio.Device.
func (d *Device) Activate(a virtio.Activation) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, at := range []uint64{d.options.Addr, d.options.Addr + d.options.Size - BlockSize} {
		if _, err := a.Memory.Slice(at, BlockSize); err != nil {
			return fmt.Errorf("memory device: %w", err)
		}
	}
	d.discard, d.changed, d.stop = a.Memory.Discard, a.ConfigChanged, func() {}
	if a.Queues[0] != nil {
		d.stop = a.Work(0, d.handle)
	}
	return nil
}

// Pause implements virtio.Device.
func (d *Device) Pause() {
	d.stop() // without the lock, which requests take
	d.mu.Lock()
	defer d.mu.Unlock()
	d.changed = nil
}

// Reset implements virtio.Device.
func (*Device) Reset() {}

// state is what is saved. Plugged has runs of blocks: the first and how many.
type state struct {
	Version           int
	Addr, Size        uint64 // of the range, which can't be another
	Requested, Usable uint64
	Plugged           [][2]uint64 `json:",omitempty"`
}

// Save implements virtio.Device.
func (d *Device) Save() ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := state{Version: 1, Addr: d.options.Addr, Size: d.options.Size, Requested: d.requested, Usable: d.usable}
	for i := 0; i < len(d.blocks); i++ {
		first := i
		for i < len(d.blocks) && d.blocks[i] {
			i++
		}
		if i > first {
			s.Plugged = append(s.Plugged, [2]uint64{uint64(first), uint64(i - first)})
		}
	}
	return json.Marshal(s)
}

// Restore implements virtio.Device.
func (d *Device) Restore(b []byte) error {
	var s state
	if err := virtio.Unmarshal(b, "a memory device", 1, &s); err != nil {
		return err
	}
	if s.Requested > d.options.Size || s.Requested%BlockSize != 0 || s.Usable > d.options.Size || s.Usable < s.Requested || s.Usable%BlockSize != 0 {
		return fmt.Errorf("state of a memory device: %d bytes of %d, of which there are %d", s.Requested, s.Usable, d.options.Size)
	}
	if s.Addr != d.options.Addr || s.Size != d.options.Size {
		return fmt.Errorf("state of a memory device: it had %d bytes at %#x, and has %d at %#x", s.Size, s.Addr, d.options.Size, d.options.Addr)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	end := uint64(0)
	for _, r := range s.Plugged {
		if r[0] < end || r[1] == 0 || r[0] >= s.Usable/BlockSize || r[1] > s.Usable/BlockSize-r[0] {
			return fmt.Errorf("state of a memory device: %d blocks from %d on", r[1], r[0])
		}
		end = r[0] + r[1]
		if err := d.access(r[0], r[1], true); err != nil {
			return err
		}
		for i := r[0]; i < end; i++ {
			d.blocks[i] = true
		}
		d.plugged += r[1] * BlockSize
	}
	d.requested, d.usable = s.Requested, s.Usable
	return nil
}

func (d *Device) access(first, n uint64, plugged bool) error {
	if d.options.Access == nil {
		return nil
	}
	return d.options.Access(d.options.Addr+first*BlockSize, n*BlockSize, plugged)
}
