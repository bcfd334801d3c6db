// Package console is the console device with several ports (virtio 1.2, 5.3):
// each a line of bytes with a name, between a program in the guest and a
// connection on the host.
//
// The host's end of a port comes and goes (Connect), and the driver is told. A
// driver that wants to write meanwhile waits; what it wrote before is dropped.
// Bytes for the guest are taken from the host's end once a program in the
// guest has opened the port, and a chunk ahead.
//
// Features: MULTIPORT. A driver that doesn't know it has the first port alone.
// Terminal sizes and emergency writes aren't offered.
//
// Saved is what the driver knows of the ports. The host's ends aren't: where a
// machine goes on they are others, of which the driver is told.
package console

import (
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/cleave-project/cleave/vmm/virtio"
)

// FeatureMultiport says that there are several ports, and a queue to speak of
// them (5.3.3).
const FeatureMultiport = 1 << 1

const (
	// MaxPorts is how many a device may have.
	MaxPorts  = 30
	queueSize = 32
	// maxName is the most that fits a page, as drivers have for messages.
	maxName = 1024
)

// Queues of the device (5.3.2): two of the first port, two for messages, then
// those of the other ports.
const (
	toDriver   = 2
	fromDriver = 3
)

// queues are the numbers of a port's: to the guest, and from it.
func queues(port int) (in, out int) {
	if port == 0 {
		return 0, 1
	}
	return 2*port + 2, 2*port + 3
}

// Conn is the host's end of a port. A Write that reaches its deadline returns
// how much it wrote; one of something that never blocks needs no deadline.
type Conn interface {
	io.ReadWriteCloser
	SetWriteDeadline(time.Time) error
}

// Device is a console device. Its methods may be called from any goroutine.
type Device struct {
	mu    sync.Mutex
	ports []*port
	news  chan struct{} // holds a token when there may be messages to send
	stops []func()      // of what is at work
}

// New returns a device with a port for each name.
func New(names ...string) (*Device, error) {
	if len(names) == 0 || len(names) > MaxPorts {
		return nil, fmt.Errorf("console with %d ports: 1 to %d are possible", len(names), MaxPorts)
	}
	d := &Device{news: make(chan struct{}, 1)}
	for i, name := range names {
		if len(name) > maxName || slices.Contains(names[:i], name) {
			return nil, fmt.Errorf("console with a port %q: its name is too long, or another's", name)
		}
		d.ports = append(d.ports, newPort(d, name))
	}
	return d, nil
}

// Connect makes c the host's end of a port, in place of the one before, which
// is closed. c is the device's, which closes it when it fails or ends.
func (d *Device) Connect(name string, c Conn) error {
	i := slices.IndexFunc(d.ports, func(p *port) bool { return p.name == name })
	if i < 0 {
		c.Close()
		return fmt.Errorf("the console has no port %q", name)
	}
	d.ports[i].connect(c)
	return nil
}

// Flush is for a machine whose processors have ended: what the guest has
// written is sent, as far as the host's ends take it within a time.
func (d *Device) Flush(grace time.Duration) {
	d.mu.Lock()
	stops := d.stops
	d.stops = nil
	d.mu.Unlock()
	for _, stop := range stops {
		stop()
	}
	deadline := time.Now().Add(grace)
	for _, p := range d.ports {
		p.flush(deadline)
	}
}

// Close closes the hosts' ends.
func (d *Device) Close() {
	for _, p := range d.ports {
		p.connect(nil)
	}
}

// Type implements virtio.Device.
func (*Device) Type() uint16 { return virtio.TypeConsole }

// Features implements virtio.Device.
func (*Device) Features() uint64 { return FeatureMultiport }

// Queues implements virtio.Device.
func (d *Device) Queues() []uint16 {
	sizes := make([]uint16, 2*len(d.ports)+2)
	for i := range sizes {
		sizes[i] = queueSize
	}
	return sizes
}

// ReadConfig implements virtio.Device: the number of ports (5.3.4).
func (d *Device) ReadConfig(offset uint64, data []byte) {
	var c [12]byte
	binary.LittleEndian.PutUint32(c[4:], uint32(len(d.ports)))
	virtio.ReadRegisters(c[:], offset, data)
}

// WriteConfig implements virtio.Device.
func (*Device) WriteConfig(uint64, []byte) {}

// Activate implements virtio.Device.
func (d *Device) Activate(a virtio.Activation) error {
	var stops []func()
	multiport := a.Features&FeatureMultiport != 0
	if multiport && a.Queues[toDriver] != nil {
		stops = append(stops, feed(a, toDriver, d.message))
	}
	if multiport && a.Queues[fromDriver] != nil {
		stops = append(stops, a.Work(fromDriver, d.take))
	}
	for i, p := range d.ports {
		if i > 0 && !multiport {
			break
		}
		if !multiport {
			p.open(true)
		}
		in, out := queues(i)
		if a.Queues[in] != nil {
			stops = append(stops, feed(a, in, p.fill))
		}
		if a.Queues[out] != nil {
			stops = append(stops, p.drain(a, out))
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stops = stops
	return nil
}

// Pause implements virtio.Device.
func (d *Device) Pause() {
	d.mu.Lock()
	stops := d.stops
	d.stops = nil
	d.mu.Unlock()
	for _, stop := range stops {
		stop()
	}
}

// Reset implements virtio.Device.
func (d *Device) Reset() {
	for _, p := range d.ports {
		p.reset()
	}
}
