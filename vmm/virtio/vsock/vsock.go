// Package vsock is the socket device (virtio 1.2, 5.10), all of it in user
// space: streams between ports of the guest and unix sockets of the host.
//
// A guest that connects to port P of CID 2 is connected to what Options.Dial
// makes of P; one that accepts is reached by a connection to
// Options.Listener, that begins with the line "CONNECT P" and is answered
// with "OK Q", Q being the port that the guest sees. Unix gives both from a
// path, as Firecracker has them: guests reach PATH_P, and PATH reaches guests.
//
// Streams only (FeatureStream): a packet of another type is answered with a
// reset. What a connection holds for either side is bounded by the credit
// that was given for it (5.10.6.3); a guest that sends more is reset.
//
// Saved is the CID. Connections don't outlive the process: after a restore
// the guest is told so by an event (5.10.6.7). They do live through a pause.
package vsock

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"sync"

	"github.com/cleave-project/cleave/vmm/virtio"
)

// FeatureStream is VIRTIO_VSOCK_F_STREAM (5.10.3).
const FeatureStream = 1 << 0

const (
	queueSize  = 256
	eventSize  = 16
	rxQueue    = 0
	txQueue    = 1
	eventQueue = 2
	hostCID    = 2
	// maxConns bounds what a guest may have open.
	maxConns = 1024
)

// Options of a device.
type Options struct {
	// CID is the guest's: 3 or more.
	CID uint32
	// Dial connects to what the host has at a port; nil if it has nothing.
	Dial func(port uint32) (net.Conn, error)
	// Listener is where the host's programs come from; nil for none. The
	// device closes it.
	Listener net.Listener
}

// Device is a socket device.
type Device struct {
	options Options
	rx      rx
	group   sync.WaitGroup // of all goroutines

	// mu is taken before that of rx.
	mu       sync.Mutex
	conns    map[key]*conn
	nextPort uint32
	restored bool // the guest is to be told that its connections are gone
	active   bool
	closed   bool
	stop     []func()
}

// New returns a device, that works for the host until Close.
func New(o Options) (*Device, error) {
	if o.CID < 3 || o.CID == 0xffffffff {
		return nil, fmt.Errorf("socket device with CID %d, which is reserved (5.10.4)", o.CID)
	}
	d := &Device{options: o, conns: map[key]*conn{}, nextPort: firstPort}
	d.rx.init(o.CID)
	if o.Listener != nil {
		d.group.Go(d.accept)
	}
	return d, nil
}

// Close ends all connections. The device is paused, or idle.
func (d *Device) Close() error {
	var err error
	if d.options.Listener != nil {
		err = d.options.Listener.Close()
	}
	d.mu.Lock()
	d.closed = true
	d.dropAll()
	d.mu.Unlock()
	d.group.Wait()
	return err
}

// Type implements virtio.Device.
func (*Device) Type() uint16 { return virtio.TypeVsock }

// Features implements virtio.Device.
func (*Device) Features() uint64 { return FeatureStream }

// Queues implements virtio.Device.
func (*Device) Queues() []uint16 { return []uint16{queueSize, queueSize, eventSize} }

// ReadConfig implements virtio.Device (5.10.4).
func (d *Device) ReadConfig(offset uint64, data []byte) {
	var c [8]byte
	binary.LittleEndian.PutUint32(c[:], d.options.CID)
	virtio.ReadRegisters(c[:], offset, data)
}

// WriteConfig implements virtio.Device.
func (*Device) WriteConfig(uint64, []byte) {}

// Activate implements virtio.Device.
func (d *Device) Activate(a virtio.Activation) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.active, d.stop = true, nil
	if a.Queues[rxQueue] != nil {
		d.rx.activate(a)
		d.stop = append(d.stop, a.OnKick(rxQueue, d.rx.pump))
	}
	if q := a.Queues[txQueue]; q != nil {
		t := &tx{device: d, queue: q, interrupt: func() { a.Interrupt(txQueue) }}
		d.stop = append(d.stop, a.Watch(txQueue, t.drain))
	}
	if q := a.Queues[eventQueue]; q != nil {
		d.stop = append(d.stop, a.OnKick(eventQueue, func() error { return d.tell(a, q) }))
	}
	return nil
}

// tell says that connections are gone, if they are and the guest has room.
func (d *Device) tell(a virtio.Activation, q *virtio.Queue) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.restored {
		return nil
	}
	var c virtio.Chain
	ok, err := q.TakeRoom(&c)
	if err != nil || !ok {
		return err
	}
	var event [4]byte // VIRTIO_VSOCK_EVENT_TRANSPORT_RESET
	if _, ok := virtio.Push(c.Writable, event[:]); !ok {
		return fmt.Errorf("%w: an event's buffer is too small", virtio.ErrQueue)
	}
	d.restored = false
	q.Done(&c, uint32(len(event)))
	if q.Interrupt() {
		a.Interrupt(eventQueue)
	}
	return nil
}

// Pause implements virtio.Device: connections wait.
func (d *Device) Pause() {
	d.rx.pause()
	for _, stop := range d.stop {
		stop()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stop, d.active = nil, false
}

// Reset implements virtio.Device.
func (d *Device) Reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dropAll()
	d.rx.forget()
	d.restored = false
}

func (d *Device) dropAll() {
	for _, c := range d.conns {
		d.drop(c)
	}
}

type state struct {
	Version int
	CID     uint32
}

// Save implements virtio.Device.
func (d *Device) Save() ([]byte, error) { return json.Marshal(state{1, d.options.CID}) }

// Restore implements virtio.Device. The CID may be another: the guest asks
// for it after the event.
func (d *Device) Restore(b []byte) error {
	var s state
	if err := virtio.Unmarshal(b, "a socket device", 1, &s); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.restored = true
	return nil
}
