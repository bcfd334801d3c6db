// Package virtiotest is a guest's driver, for tests of devices: it does what
// Linux does with a transport's registers, puts requests into queues, and
// waits for the device's interrupts. No KVM is needed.
//
// A Guest fails its test when the device breaks a rule: a request that is
// given back twice, one that was never made, more bytes than there is room
// for. Its queues may be used from several goroutines.
package virtiotest

import (
	"encoding/binary"
	"encoding/json"
	"math/bits"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/vmm/memory"
	"github.com/cleave-project/cleave/vmm/virtio"
)

// Registers of the common configuration, and where things are in the BAR, as
// a driver finds them in the capabilities (4.1.4).
const (
	regDriverFeatureSelect = 8
	regDriverFeature       = 12
	regDeviceFeatureSelect = 0
	regDeviceFeature       = 4
	regConfigVector        = 16
	regStatus              = 20
	regQueueSelect         = 22
	regQueueSize           = 24
	regQueueVector         = 26
	regQueueEnable         = 28
	regQueueDesc           = 32
	regQueueDriver         = 40
	regQueueDevice         = 48
	atDevice               = 0x2000
	atTable                = 0x8000

	statusNeedsReset = 64
)

// patience is how long a device may take: it is a hang if it takes longer.
const patience = 2 * time.Minute

// Guest is a driver with its memory.
type Guest struct {
	Memory *memory.Memory
	Queues []*Queue

	t      testing.TB
	mu     sync.RWMutex // guards dev, which Move changes
	dev    *virtio.Transport
	device virtio.Device

	vectors []chan struct{} // by vector: 0 is for the configuration

	heap sync.Mutex
	top  uint64
	free [40][]uint64 // of the heap, by the power of two that they have
}

// memorySize is what a guest has.
const memorySize = 64 << 20

// Plug puts a device into a guest of its own.
func Plug(t testing.TB, d virtio.Device) *Guest {
	t.Helper()
	m, err := memory.New(memorySize, memory.Options{})
	if err != nil {
		t.Fatal(err)
	}
	g := &Guest{Memory: m, t: t, top: 1 << 20}
	for range len(d.Queues()) + 1 {
		g.vectors = append(g.vectors, make(chan struct{}, 1))
	}
	t.Cleanup(func() { m.Close() })
	g.dev, g.device = g.transport(d), d
	t.Cleanup(func() { g.Transport().Detach() })
	return g
}

// transport is one more for a device, with its eventfds.
func (g *Guest) transport(d virtio.Device) *virtio.Transport {
	g.t.Helper()
	var kicks []*os.File
	for range d.Queues() {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err != nil {
			g.t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "kick")
		g.t.Cleanup(func() { f.Close() })
		kicks = append(kicks, f)
	}
	tr, err := virtio.NewTransport(d, g.Memory, 0xc0000000, 0, kicks, messages{g})
	if err != nil {
		g.t.Fatal(err)
	}
	return tr
}

// messages are the interrupts of a guest's device: as with a processor, one
// that comes again before it was handled is one.
type messages struct{ g *Guest }

func (messages) Route(int, uint64, uint32, bool) {}
func (m messages) Signal(n int) {
	select {
	case m.g.vectors[n] <- struct{}{}:
	default:
	}
}

// Transport is the device's transport.
func (g *Guest) Transport() *virtio.Transport {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.dev
}

// Offered are the features that the device has.
func (g *Guest) Offered() (features uint64) {
	for half := range uint64(2) {
		g.write(regDeviceFeatureSelect, 4, half)
		features |= g.read(regDeviceFeature, 4) << (32 * half)
	}
	return features
}

// Start initializes the device with features (3.1.1); those of the version
// are added. Other queues than the first n are left alone if n is given.
func (g *Guest) Start(features uint64, n ...int) {
	g.t.Helper()
	g.StartWith(features, func() {}, n...)
}

// StartWith is Start with what a driver does before it is ready.
func (g *Guest) StartWith(features uint64, prepare func(), n ...int) {
	g.t.Helper()
	features |= virtio.FeatureVersion1
	g.write(regStatus, 1, 0)
	g.write(regStatus, 1, 1)
	g.write(regStatus, 1, 3)
	for half := range uint64(2) {
		g.write(regDriverFeatureSelect, 4, half)
		g.write(regDriverFeature, 4, features>>(32*half)&0xffffffff)
	}
	g.write(regStatus, 1, 11)
	if s := g.read(regStatus, 1); s != 11 {
		g.t.Fatalf("features %#x of %#x are refused: status %#x", features, g.Offered(), s)
	}
	g.enableInterrupts()
	g.write(regConfigVector, 2, 0)
	sizes := g.device.Queues()
	if len(n) > 0 {
		sizes = sizes[:n[0]]
	}
	g.Queues = nil
	for i, size := range sizes {
		g.Queues = append(g.Queues, g.queue(i, size, features))
	}
	prepare()
	g.write(regStatus, 1, 15)
	if s := g.Status(); s != 15 {
		g.t.Fatalf("the device didn't start: status %#x", s)
	}
}

func (g *Guest) enableInterrupts() {
	for n := range g.vectors {
		g.write(uint64(atTable+16*n+12), 4, 0)
	}
	space := g.Transport().Space()
	for at := int(space.Bytes(0x34, 1)[0]); at != 0; at = int(space.Bytes(at+1, 1)[0]) {
		if space.Bytes(at, 1)[0] == 0x11 {
			space.Write(at+3, []byte{0x80})
		}
	}
}

func (g *Guest) write(at uint64, size int, v uint64) {
	g.Transport().WriteBAR(0, at, binary.LittleEndian.AppendUint64(nil, v)[:size])
}

func (g *Guest) read(at uint64, size int) uint64 {
	b := make([]byte, 8)
	g.Transport().ReadBAR(0, at, b[:size])
	return binary.LittleEndian.Uint64(b)
}

// Status is the device's.
func (g *Guest) Status() byte { return byte(g.read(regStatus, 1)) }

// Reset resets the device.
func (g *Guest) Reset() { g.write(regStatus, 1, 0) }

// Config reads the device's own registers.
func (g *Guest) Config(at uint64, size int) uint64 { return g.read(atDevice+at, size) }

// SetConfig writes them.
func (g *Guest) SetConfig(at uint64, size int, v uint64) { g.write(atDevice+at, size, v) }

// ConfigChanged waits for the interrupt that tells of other registers.
func (g *Guest) ConfigChanged() {
	g.t.Helper()
	g.wait(0)
}

// Failed waits until the device says that the guest broke the rules.
func (g *Guest) Failed() {
	g.t.Helper()
	for g.Status()&statusNeedsReset == 0 {
		g.wait(0)
	}
}

func (g *Guest) wait(vector int) {
	g.t.Helper()
	select {
	case <-g.vectors[vector]:
	case <-time.After(patience):
		g.t.Fatalf("no interrupt %d after %v, status %#x", vector, patience, g.Status())
	}
}

// Move pauses the device, saves it, and has another go on in its place, over
// the same memory: what a snapshot or a migration does. Requests may be made
// meanwhile.
func (g *Guest) Move(to virtio.Device) {
	g.t.Helper()
	from := g.Transport()
	from.Pause()
	s, err := from.Save()
	if err != nil {
		g.t.Fatal(err)
	}
	b, err := json.Marshal(s)
	if err != nil {
		g.t.Fatal(err)
	}
	var back virtio.TransportState
	if err := json.Unmarshal(b, &back); err != nil {
		g.t.Fatal(err)
	}
	next := g.transport(to)
	if err := next.Restore(&back); err != nil {
		g.t.Fatal(err)
	}
	g.mu.Lock()
	g.dev, g.device = next, to
	g.mu.Unlock()
	from.Detach()
	next.Resume()
}

// Alloc is n bytes of the guest's memory.
func (g *Guest) Alloc(n int) (uint64, []byte) {
	g.t.Helper()
	g.heap.Lock()
	defer g.heap.Unlock()
	class := bits.Len(uint(max(n, 16) - 1))
	var at uint64
	if f := g.free[class]; len(f) > 0 {
		at, g.free[class] = f[len(f)-1], f[:len(f)-1]
	} else {
		at = (g.top + 4095) &^ 4095
		if class < 12 {
			at = (g.top + 15) &^ 15
		}
		g.top = at + 1<<class
	}
	b, err := g.Memory.Slice(at, uint64(n))
	if err != nil {
		g.t.Fatalf("the guest has no memory left: %v", err)
	}
	return at, b
}

// Free takes back what Alloc gave.
func (g *Guest) Free(at uint64, n int) {
	g.heap.Lock()
	defer g.heap.Unlock()
	class := bits.Len(uint(max(n, 16) - 1))
	g.free[class] = append(g.free[class], at)
}
