package virtio

import (
	"encoding/binary"
	"os"
	"sync"
	"sync/atomic"

	"github.com/cleave-project/cleave/vmm/memory"
	"github.com/cleave-project/cleave/vmm/pci"
)

// Features of every device (6).
const (
	FeatureIndirect   = 1 << 28
	FeatureEventIndex = 1 << 29
	FeatureVersion1   = 1 << 32
	common            = FeatureIndirect | FeatureEventIndex | FeatureVersion1
)

// Bits of the device status (2.1).
const (
	statusAcknowledge = 1
	statusDriver      = 2
	statusDriverOK    = 4
	statusFeaturesOK  = 8
	statusNeedsReset  = 64
	statusFailed      = 128
)

// The transport's BAR 0, and what is where in it.
const (
	barSize     = 64 << 10
	atCommon    = 0
	atISR       = 0x1000
	atDevice    = 0x2000
	atNotify    = 0x3000
	atMSIX      = 0x8000
	atPending   = 0xc000
	regionSize  = 0x1000
	notifyStep  = 4
	noVector    = 0xffff
	commonSize  = 64
	vendorID    = 0x1af4
	firstDevice = 0x1040
)

// Registers of the common configuration (4.1.4.3).
const (
	regDeviceFeatureSelect = 0
	regDeviceFeature       = 4
	regDriverFeatureSelect = 8
	regDriverFeature       = 12
	regConfigVector        = 16
	regNumQueues           = 18
	regStatus              = 20
	regGeneration          = 21
	regQueueSelect         = 22
	regQueueSize           = 24
	regQueueVector         = 26
	regQueueEnable         = 28
	regQueueNotify         = 30
	regQueueDesc           = 32
	regQueueDriver         = 40
	regQueueDevice         = 48
)

// Transport is a virtio device as a function on PCI (4.1).
type Transport struct {
	device Device
	memory *memory.Memory
	space  *pci.Space
	msix   *pci.MSIX
	kicks  []*os.File

	mu           sync.Mutex
	status       byte
	features     uint64 // the driver's
	deviceSelect uint32
	driverSelect uint32
	queueSelect  uint16
	queues       []queueRegisters
	life         life
	live         []*Queue // those of the device, unless it is idle
	restored     bool     // put into a saved state, and not at work since

	// What the device at work changes is beside the lock: a reset holds that
	// while it waits for the device to pause.
	failed       atomic.Bool
	configVector atomic.Uint32
	generation   atomic.Uint32 // of which the driver sees 8 bits
	isr          atomic.Uint32
}

// life is how far a device is in its own.
type life int

const (
	idle    life = iota // nothing of a driver
	running             // between Activate and Pause
	paused              // after Pause, or put into a saved state
)

// queueRegisters are what a driver says of a queue before it is used.
type queueRegisters struct {
	Size, Vector         uint16
	Enabled              bool
	Desc, Driver, Device uint64
}

// NewTransport puts a device behind a function with its memory at an address.
// Kicks are its eventfds, one for each queue; the caller has the kernel count
// writes to Notify(n) in them.
func NewTransport(d Device, m *memory.Memory, at uint64, class uint32, kicks []*os.File, out pci.Messages) (*Transport, error) {
	sizes := d.Queues()
	t := &Transport{device: d, memory: m, kicks: kicks, queues: make([]queueRegisters, len(sizes))}
	t.space = pci.NewSpace(pci.ID{
		Vendor: vendorID, Device: firstDevice + d.Type(), Class: class, Revision: 1,
		SubVendor: vendorID, SubDevice: firstDevice + d.Type(),
	})
	t.space.AddBAR(0, barSize, at)
	for _, c := range []struct {
		kind    byte
		at, len uint32
		more    []byte
	}{
		{1, atCommon, commonSize, nil},
		{2, atNotify, uint32(len(sizes)) * notifyStep, []byte{notifyStep, 0, 0, 0}},
		{3, atISR, 1, nil},
		{4, atDevice, regionSize, nil},
	} {
		t.capability(c.kind, c.at, c.len, c.more)
	}
	var err error
	if t.msix, err = pci.NewMSIX(t.space, len(sizes)+1, 0, atMSIX, atPending, out); err != nil {
		return nil, err
	}
	t.clear()
	return t, nil
}

// capability is struct virtio_pci_cap (4.1.4) behind its id and pointer.
func (t *Transport) capability(kind byte, at, size uint32, more []byte) {
	b := []byte{byte(16 + len(more)), kind, 0, 0, 0, 0}
	b = binary.LittleEndian.AppendUint32(b, at)
	b = binary.LittleEndian.AppendUint32(b, size)
	t.space.AddCapability(pci.CapVendor, append(b, more...), nil)
}

// Notify is where in BAR 0 the driver writes to notify queue n.
func Notify(n int) uint64 { return atNotify + uint64(n)*notifyStep }

// Space implements pci.Device.
func (t *Transport) Space() *pci.Space { return t.space }

// MSIX are the function's interrupts.
func (t *Transport) MSIX() *pci.MSIX { return t.msix }

// ReadBAR implements pci.Device.
func (t *Transport) ReadBAR(_ int, offset uint64, data []byte) {
	clear(data)
	switch {
	case offset < atISR:
		t.mu.Lock()
		defer t.mu.Unlock()
		t.readCommon(offset, data)
	case offset < atDevice:
		data[0] = byte(t.isr.Swap(0))
	case offset < atNotify:
		t.device.ReadConfig(offset-atDevice, data)
	case offset >= atMSIX && offset < atPending:
		t.msix.ReadTable(offset-atMSIX, data)
	case offset >= atPending:
		t.msix.ReadPending(offset-atPending, data)
	}
}

// WriteBAR implements pci.Device.
func (t *Transport) WriteBAR(_ int, offset uint64, data []byte) {
	switch {
	case offset < atISR:
		t.mu.Lock()
		defer t.mu.Unlock()
		t.writeCommon(offset, data)
	case offset < atDevice:
	case offset < atNotify:
		t.device.WriteConfig(offset-atDevice, data)
	case offset < atMSIX:
		t.kick(int(offset-atNotify) / notifyStep)
	case offset < atPending:
		t.msix.WriteTable(offset-atMSIX, data)
	}
}

// kick counts a notification that came by an exit and not by the kernel.
func (t *Transport) kick(n int) {
	if n < len(t.kicks) {
		_, _ = t.kicks[n].Write([]byte{1, 0, 0, 0, 0, 0, 0, 0})
	}
}

func (t *Transport) selected() *queueRegisters {
	if int(t.queueSelect) < len(t.queues) {
		return &t.queues[t.queueSelect]
	}
	return nil
}

// offered is what the device can, with what the transport can for it.
func (t *Transport) offered() uint64 { return t.device.Features() | common }

// word is 32 bits of features.
func word(features uint64, selected uint32) uint32 {
	if selected > 1 {
		return 0
	}
	return uint32(features >> (32 * selected))
}

// readCommon reads registers with the size that they have (4.1.3.1).
func (t *Transport) readCommon(offset uint64, data []byte) {
	var v uint64
	q := t.selected()
	switch offset {
	case regDeviceFeatureSelect:
		v = uint64(t.deviceSelect)
	case regDeviceFeature:
		v = uint64(word(t.offered(), t.deviceSelect))
	case regDriverFeatureSelect:
		v = uint64(t.driverSelect)
	case regDriverFeature:
		v = uint64(word(t.features, t.driverSelect))
	case regConfigVector:
		v = uint64(t.configVector.Load())
	case regNumQueues:
		v = uint64(len(t.queues))
	case regStatus:
		v = uint64(t.status)
		if t.failed.Load() {
			v |= statusNeedsReset
		}
	case regGeneration:
		v = uint64(byte(t.generation.Load()))
	case regQueueSelect:
		v = uint64(t.queueSelect)
	case regQueueNotify:
		v = uint64(t.queueSelect)
	default:
		if q != nil {
			v = q.read(offset)
		}
	}
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	copy(data, b[:])
}

func (q *queueRegisters) read(offset uint64) uint64 {
	switch offset {
	case regQueueSize:
		return uint64(q.Size)
	case regQueueVector:
		return uint64(q.Vector)
	case regQueueEnable:
		if q.Enabled {
			return 1
		}
	}
	if p, half := q.address(offset); p != nil {
		return *p >> (32 * half)
	}
	return 0
}

// address is the register of 64 bits at an offset, and which half of it.
func (q *queueRegisters) address(offset uint64) (p *uint64, half uint64) {
	switch offset &^ 7 {
	case regQueueDesc:
		p = &q.Desc
	case regQueueDriver:
		p = &q.Driver
	case regQueueDevice:
		p = &q.Device
	}
	return p, offset >> 2 & 1
}

func (t *Transport) writeCommon(offset uint64, data []byte) {
	var b [8]byte
	copy(b[:], data)
	v := binary.LittleEndian.Uint64(b[:])
	switch offset {
	case regDeviceFeatureSelect:
		t.deviceSelect = uint32(v)
	case regDriverFeatureSelect:
		t.driverSelect = uint32(v)
	case regDriverFeature:
		if t.driverSelect < 2 && t.status&statusFeaturesOK == 0 {
			shift := 32 * t.driverSelect
			t.features = t.features&^(0xffffffff<<shift) | v&0xffffffff<<shift
		}
	case regConfigVector:
		t.configVector.Store(uint32(t.vector(v)))
	case regStatus:
		t.setStatus(byte(v))
	case regQueueSelect:
		t.queueSelect = uint16(v)
	default:
		if q := t.selected(); q != nil && t.status&statusDriverOK == 0 {
			t.writeQueue(q, offset, v, len(data))
		}
	}
}

// vector is one that exists, or none (4.1.5.1.3).
func (t *Transport) vector(v uint64) uint16 {
	if v > uint64(len(t.queues)) {
		return noVector
	}
	return uint16(v)
}

func (t *Transport) writeQueue(q *queueRegisters, offset, v uint64, size int) {
	switch offset {
	case regQueueSize:
		if most := t.device.Queues()[t.queueSelect]; v > 0 && v <= uint64(most) && v&(v-1) == 0 {
			q.Size = uint16(v)
		}
	case regQueueVector:
		q.Vector = t.vector(v)
	case regQueueEnable:
		q.Enabled = q.Enabled || v == 1
	default:
		p, half := q.address(offset)
		switch {
		case p == nil:
		case size == 8 && half == 0:
			*p = v
		case size == 4:
			*p = *p&^(0xffffffff<<(32*half)) | v<<(32*half)
		}
	}
}

// setStatus is the driver's part of initialization (3.1.1).
func (t *Transport) setStatus(v byte) {
	if v == 0 {
		t.reset()
		return
	}
	added := v &^ t.status
	t.status |= v & (statusAcknowledge | statusDriver | statusFeaturesOK | statusDriverOK | statusFailed)
	if added&statusFeaturesOK != 0 && (t.features&^t.offered() != 0 || t.features&FeatureVersion1 == 0) {
		t.status &^= statusFeaturesOK // not what can be done
	}
	if added&statusDriverOK != 0 {
		t.activate()
	}
}
