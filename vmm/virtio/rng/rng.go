// Package rng is the entropy device (virtio 1.2, 5.4): its only queue asks
// for random bytes.
package rng

import (
	"crypto/rand"
	"errors"

	"github.com/cleave-project/cleave/vmm/virtio"
)

// Device is an entropy device.
type Device struct{ stop func() }

// New returns one.
func New() *Device { return &Device{} }

// most bounds what one request gets; the driver asks again.
const most = 64 << 10

// Type implements virtio.Device.
func (*Device) Type() uint16 { return virtio.TypeEntropy }

// Features implements virtio.Device.
func (*Device) Features() uint64 { return 0 }

// Queues implements virtio.Device.
func (*Device) Queues() []uint16 { return []uint16{64} }

// ReadConfig implements virtio.Device: there is nothing to read.
func (*Device) ReadConfig(_ uint64, data []byte) { clear(data) }

// WriteConfig implements virtio.Device.
func (*Device) WriteConfig(uint64, []byte) {}

// Activate implements virtio.Device.
func (d *Device) Activate(a virtio.Activation) error {
	d.stop = func() {}
	if a.Queues[0] != nil {
		d.stop = a.Work(0, fill)
	}
	return nil
}

func fill(c *virtio.Chain) (uint32, error) {
	n := 0
	for _, b := range c.Writable {
		b = b[:min(len(b), most-n)]
		if _, err := rand.Read(b); err != nil {
			return 0, err
		}
		n += len(b)
	}
	return uint32(n), nil
}

// Pause implements virtio.Device.
func (d *Device) Pause() { d.stop() }

// Reset implements virtio.Device: there is nothing to forget.
func (*Device) Reset() {}

// Save implements virtio.Device: it has no state.
func (*Device) Save() ([]byte, error) { return nil, nil }

// Restore implements virtio.Device.
func (*Device) Restore([]byte) error { return errors.New("an entropy device has no state") }
