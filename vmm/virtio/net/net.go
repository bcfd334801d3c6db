// Package net is the network device (virtio 1.2, 5.1) over a tap of the host,
// with one or several pairs of queues, each on a descriptor of its own.
//
// Features: MAC, STATUS, MTU if one is given, MRG_RXBUF; CSUM, HOST_TSO4,
// HOST_TSO6, HOST_ECN, HOST_UFO and the same for the guest, USO where the
// host's kernel has it; CTRL_VQ with CTRL_RX, CTRL_RX_EXTRA, CTRL_MAC_ADDR,
// CTRL_GUEST_OFFLOADS and GUEST_ANNOUNCE; MQ for more than one pair. Filters
// for receiving are accepted and all is passed, which 5.1.6.5.1 allows: what
// a guest may get and send is for the host's switch to decide.
//
// A packet goes between tap and guest without a copy, unless the guest has
// offered less room than the largest packet may need. The header of a packet
// that the guest sends is copied, and checked against what was negotiated,
// before the host's kernel sees it; one that is wrong is dropped and counted.
//
// Saved are the MAC address and the number of pairs as the driver has set
// them, and its offloads. After a restore the guest is asked to announce
// itself. Limits, metrics and the link's state are the host's.
package net

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/cleave-project/cleave/vmm/ratelimit"
	"github.com/cleave-project/cleave/vmm/virtio"
)

// Features (5.1.3).
const (
	FeatureCSUM           = 1 << 0
	FeatureGuestCSUM      = 1 << 1
	FeatureGuestOffloads  = 1 << 2
	FeatureMTU            = 1 << 3
	FeatureMAC            = 1 << 5
	FeatureGuestTSO4      = 1 << 7
	FeatureGuestTSO6      = 1 << 8
	FeatureGuestECN       = 1 << 9
	FeatureGuestUFO       = 1 << 10
	FeatureHostTSO4       = 1 << 11
	FeatureHostTSO6       = 1 << 12
	FeatureHostECN        = 1 << 13
	FeatureHostUFO        = 1 << 14
	FeatureMergeable      = 1 << 15
	FeatureStatus         = 1 << 16
	FeatureControl        = 1 << 17
	FeatureControlRX      = 1 << 18
	FeatureControlRXExtra = 1 << 20
	FeatureAnnounce       = 1 << 21
	FeatureMQ             = 1 << 22
	FeatureControlMAC     = 1 << 23
	FeatureGuestUSO4      = 1 << 54
	FeatureGuestUSO6      = 1 << 55
	FeatureHostUSO        = 1 << 56
)

const (
	queueSize   = 256
	controlSize = 64
	maxPairs    = 64

	guestOffloads = FeatureGuestCSUM | FeatureGuestTSO4 | FeatureGuestTSO6 | FeatureGuestECN | FeatureGuestUFO | FeatureGuestUSO4 | FeatureGuestUSO6
	withUSO       = FeatureGuestUSO4 | FeatureGuestUSO6 | FeatureHostUSO
)

// Bits of the status register (5.1.4).
const (
	statusLink     = 1
	statusAnnounce = 2
)

// MAC is the address of an interface.
type MAC [6]byte

// Options of a device.
type Options struct {
	MAC MAC
	// MTU is told to the guest unless it is 0.
	MTU uint16
	// Receive and Send are limits as the guest sees them; they may be nil.
	Receive, Send *ratelimit.Limiter
}

// Device is a network device.
type Device struct {
	options Options
	ports   []*port // pairs of queues
	uso     bool

	// mu is taken before those of ports.
	mu          sync.Mutex
	mac         MAC
	pairs       int     // in use
	offloads    *uint64 // that the driver has set; nil for what it negotiated
	down        bool
	announce    bool // the guest is to announce itself
	restored    bool
	features    uint64 // while active
	changed     func() // nil while idle
	stopControl func()
}

// New returns a device on the queues of one tap, as many as pairs.
func New(taps []*Tap, o Options) (*Device, error) {
	if len(taps) < 1 || len(taps) > maxPairs {
		return nil, fmt.Errorf("network device on %d queues of a tap: 1 to %d are possible", len(taps), maxPairs)
	}
	if o.MAC[0]&1 != 0 || o.MAC == (MAC{}) {
		return nil, fmt.Errorf("network device with address % x: it is a group's, or none", o.MAC)
	}
	if o.MTU != 0 && o.MTU < 68 {
		return nil, fmt.Errorf("network device with an MTU of %d: at least 68 is needed", o.MTU)
	}
	d := &Device{options: o, mac: o.MAC, pairs: 1, uso: true}
	for n, tap := range taps {
		d.uso = d.uso && tap.uso
		d.ports = append(d.ports, newPort(d, tap, n))
	}
	return d, nil
}

// Type implements virtio.Device.
func (*Device) Type() uint16 { return virtio.TypeNet }

// Features implements virtio.Device.
func (d *Device) Features() uint64 {
	f := uint64(FeatureMAC | FeatureStatus | FeatureMergeable | FeatureCSUM | FeatureHostTSO4 | FeatureHostTSO6 |
		FeatureHostECN | FeatureHostUFO | FeatureHostUSO | FeatureControl | FeatureControlRX | FeatureControlRXExtra |
		FeatureControlMAC | FeatureGuestOffloads | FeatureAnnounce | guestOffloads)
	if !d.uso {
		f &^= withUSO
	}
	if d.options.MTU != 0 {
		f |= FeatureMTU
	}
	if len(d.ports) > 1 {
		f |= FeatureMQ
	}
	return f
}

// Queues implements virtio.Device: those of pairs, and the control queue.
func (d *Device) Queues() []uint16 {
	var sizes []uint16
	for range d.ports {
		sizes = append(sizes, queueSize, queueSize)
	}
	return append(sizes, controlSize)
}

// ReadConfig implements virtio.Device (5.1.4).
func (d *Device) ReadConfig(offset uint64, data []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var c [12]byte
	copy(c[:], d.mac[:])
	var status uint16
	if !d.down {
		status |= statusLink
	}
	if d.announce {
		status |= statusAnnounce
	}
	le := binary.LittleEndian
	le.PutUint16(c[6:], status)
	le.PutUint16(c[8:], uint16(len(d.ports)))
	le.PutUint16(c[10:], d.options.MTU)
	virtio.ReadRegisters(c[:], offset, data)
}

// WriteConfig implements virtio.Device: nothing can be written.
func (*Device) WriteConfig(uint64, []byte) {}

// SetLink plugs the cable in or out. Without it packets are dropped.
func (d *Device) SetLink(up bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.down == !up {
		return
	}
	d.down = !up
	for _, p := range d.ports {
		p.down.Store(d.down)
	}
	if d.changed != nil {
		d.changed()
	}
}

// Announce asks the guest to tell its neighbours where it is (5.1.6.5.4).
func (d *Device) Announce() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.askToAnnounce()
}

func (d *Device) askToAnnounce() {
	if d.changed != nil && d.features&FeatureAnnounce != 0 {
		d.announce = true
		d.changed()
	}
}

// controlQueue is behind the pairs that the driver knows of (5.1.2).
func (d *Device) controlQueue(features uint64) int {
	if features&FeatureMQ == 0 {
		return 2
	}
	return 2 * len(d.ports)
}

// Activate implements virtio.Device.
func (d *Device) Activate(a virtio.Activation) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if a.Features&FeatureMQ == 0 {
		d.pairs = 1
	}
	d.features, d.changed, d.stopControl = a.Features, a.ConfigChanged, func() {}
	for _, p := range d.ports[:d.known()] {
		p.activate(a)
	}
	if err := d.setOffloads(); err != nil {
		d.pause()
		return err
	}
	if err := d.setPairs(d.pairs); err != nil {
		d.pause()
		return err
	}
	if n := d.controlQueue(a.Features); a.Features&FeatureControl != 0 && a.Queues[n] != nil {
		d.stopControl = a.Work(n, d.control)
	}
	if d.restored {
		d.restored = false
		d.askToAnnounce()
	}
	return nil
}

// known is how many pairs the driver knows of.
func (d *Device) known() int {
	if d.features&FeatureMQ == 0 {
		return 1
	}
	return len(d.ports)
}

// Pause implements virtio.Device.
func (d *Device) Pause() {
	d.mu.Lock()
	stop := d.stopControl
	d.mu.Unlock()
	stop() // without the lock, which its commands take
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pause()
}

func (d *Device) pause() {
	for _, p := range d.ports[:d.known()] {
		p.pause()
	}
	d.changed = nil
}

// setPairs has packets come to some pairs only.
func (d *Device) setPairs(n int) error {
	for i, p := range d.ports {
		if i < n {
			continue
		}
		p.stopReceiving()
		if err := p.tap.attach(false); err != nil {
			return err
		}
	}
	for _, p := range d.ports[:n] {
		if err := p.tap.attach(true); err != nil {
			return err
		}
		p.startReceiving()
	}
	d.pairs = n
	return nil
}

// setOffloads has the host's kernel hand over what the guest can take.
func (d *Device) setOffloads() error {
	f := d.features & guestOffloads
	if d.offloads != nil {
		f &= *d.offloads
	}
	return d.ports[0].tap.setOffloads(f)
}

// Reset implements virtio.Device.
func (d *Device) Reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mac, d.pairs, d.offloads, d.announce = d.options.MAC, 1, nil, false
	for _, p := range d.ports {
		p.forget()
	}
}

// state is what is saved.
type state struct {
	Version  int
	MAC      MAC
	Pairs    int
	Offloads *uint64 `json:",omitempty"`
}

// Save implements virtio.Device.
func (d *Device) Save() ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return json.Marshal(state{1, d.mac, d.pairs, d.offloads})
}

// Restore implements virtio.Device.
func (d *Device) Restore(b []byte) error {
	var s state
	if err := virtio.Unmarshal(b, "a network device", 1, &s); err != nil {
		return err
	}
	if s.Pairs < 1 || s.Pairs > len(d.ports) {
		return fmt.Errorf("state of a network device: %d pairs of queues of %d", s.Pairs, len(d.ports))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mac, d.pairs, d.offloads, d.restored = s.MAC, s.Pairs, s.Offloads, true
	return nil
}

// Metrics returns what the device has done since it was made.
func (d *Device) Metrics() Metrics {
	var m Metrics
	for _, p := range d.ports {
		m.Received.add(&p.received)
		m.Sent.add(&p.sent)
	}
	return m
}
