package virtio_test

import (
	"bytes"
	"encoding/binary"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/vmm/memory"
	"github.com/cleave-project/cleave/vmm/virtio"
	"github.com/cleave-project/cleave/vmm/virtio/rng"
)

// messages counts interrupts by vector.
type messages struct{ sent chan int }

func (messages) Route(int, uint64, uint32, bool) {}
func (m messages) Signal(n int)                  { m.sent <- n }

// guest drives a device through the registers of its BAR, as Linux does.
type guest struct {
	*virtio.Transport
	t    testing.TB
	mem  *memory.Memory
	sent chan int
}

func plug(t testing.TB, d virtio.Device) *guest {
	t.Helper()
	m, err := memory.New(1<<20, memory.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	var kicks []*os.File
	for range d.Queues() {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "kick")
		t.Cleanup(func() { f.Close() })
		kicks = append(kicks, f)
	}
	g := &guest{t: t, mem: m, sent: make(chan int, 100)}
	if g.Transport, err = virtio.NewTransport(d, m, 0xc0000000, 0, kicks, messages{g.sent}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.set(20, 1, 0) })
	return g
}

func (g *guest) set(at uint64, size int, v uint64) {
	g.WriteBAR(0, at, binary.LittleEndian.AppendUint64(nil, v)[:size])
}

func (g *guest) get(at uint64, size int) uint64 {
	b := make([]byte, 8)
	g.ReadBAR(0, at, b[:size])
	return binary.LittleEndian.Uint64(b)
}

// begin is the driver's initialization up to its queues (3.1.1).
func (g *guest) begin(features uint64) {
	g.set(20, 1, 0)
	g.set(20, 1, 1)
	g.set(20, 1, 3)
	for half := range uint64(2) {
		g.set(8, 4, half)
		g.set(12, 4, features>>(32*half)&0xffffffff)
	}
	g.set(20, 1, 11)
}

// queue sets queue 0 up, and MSI-X for it.
func (g *guest) queue() {
	g.set(22, 2, 0)
	g.set(24, 2, 8)
	g.set(26, 2, 1)
	g.set(32, 8, 0x1000)
	g.set(40, 4, 0x2000)
	g.set(48, 4, 0x3000)
	g.set(28, 2, 1)
	g.set(0x8000+16+12, 4, 0) // unmask vector 1
	space := g.Space()
	for at := int(space.Bytes(0x34, 1)[0]); at != 0; at = int(space.Bytes(at+1, 1)[0]) {
		if space.Bytes(at, 1)[0] == 0x11 {
			space.Write(at+3, []byte{0x80})
		}
	}
}

// ask makes a request of n bytes available and notifies.
func (g *guest) ask(n uint32, index uint16) {
	le := binary.LittleEndian
	d := le.AppendUint64(nil, 0x10000)
	d = le.AppendUint32(d, n)
	d = le.AppendUint16(d, 2) // writable
	d = le.AppendUint16(d, 0)
	for at, b := range map[uint64][]byte{0x1000: d, 0x2000 + 4 + 2*uint64((index-1)%8): {0, 0}, 0x2002: le.AppendUint16(nil, index)} {
		if err := g.mem.Write(b, at); err != nil {
			g.t.Fatal(err)
		}
	}
	g.set(virtio.Notify(0), 2, 0)
}

func (g *guest) interrupted(vector int) {
	g.t.Helper()
	select {
	case n := <-g.sent:
		if n != vector {
			g.t.Fatalf("interrupt %d, want %d", n, vector)
		}
	case <-time.After(time.Minute):
		g.t.Fatal("no interrupt")
	}
}

func TestADriverGetsWhatItAsksFor(t *testing.T) {
	g := plug(t, rng.New())
	for range 3 { // a reset in between leaves nothing
		g.begin(virtio.FeatureVersion1)
		if g.get(20, 1) != 11 || g.get(18, 2) != 1 {
			t.Fatalf("status %#x, %d queues", g.get(20, 1), g.get(18, 2))
		}
		g.queue()
		g.set(20, 1, 15)
		for i := range uint16(10) {
			g.ask(32, i+1)
			g.interrupted(1)
		}
		b, _ := g.mem.Slice(0x10000, 32)
		if bytes.Equal(b, make([]byte, 32)) {
			t.Error("no entropy")
		}
		if n, _ := g.mem.Uint16(0x3002); n != 10 {
			t.Errorf("%d were given back", n)
		}
		g.set(20, 1, 0)
		if g.get(20, 1) != 0 || g.get(28, 2) != 0 {
			t.Error("a reset leaves something")
		}
		if err := g.mem.Write(make([]byte, 0x3000), 0x1000); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWhatIsNotOfferedIsRefused(t *testing.T) {
	g := plug(t, rng.New())
	for name, features := range map[string]uint64{"legacy": 0, "another": virtio.FeatureVersion1 | 1<<40} {
		g.begin(features)
		if g.get(20, 1)&8 != 0 {
			t.Errorf("%s: the features are taken", name)
		}
		g.set(20, 1, 15)
		if g.get(20, 1)&64 == 0 {
			t.Errorf("%s: the device begins", name)
		}
	}
}

func TestABrokenQueueStopsTheDevice(t *testing.T) {
	g := plug(t, rng.New())
	g.begin(virtio.FeatureVersion1)
	g.queue()
	g.set(16, 2, 0)        // tell of changes by vector 0
	g.set(0x8000+12, 4, 0) // which isn't masked
	g.set(20, 1, 15)
	g.ask(0x7fffffff, 1) // far more than there is
	g.interrupted(0)
	if g.get(20, 1)&64 == 0 {
		t.Error("it doesn't say that it needs a reset")
	}
	g.begin(virtio.FeatureVersion1)
	if g.get(20, 1) != 11 {
		t.Errorf("after a reset the status is %#x", g.get(20, 1))
	}

	g.queue()
	g.set(32, 8, 1<<40) // descriptors outside of memory
	g.set(28, 2, 1)
	g.set(20, 1, 15)
	if g.get(20, 1)&64 == 0 {
		t.Error("a queue outside of memory is used")
	}
}

func FuzzRegisters(f *testing.F) {
	f.Add([]byte{20, 0, 1, 20, 0, 3, 12, 0, 255, 20, 0, 11, 20, 0, 15})
	f.Fuzz(func(t *testing.T, ops []byte) {
		g := plug(t, rng.New())
		go func() {
			for range g.sent {
			}
		}()
		g.begin(virtio.FeatureVersion1)
		g.queue()
		for ; len(ops) >= 3; ops = ops[3:] {
			at := uint64(ops[0]) | uint64(ops[1])<<8
			for _, size := range []int{1, 2, 4, 8} {
				g.set(at&0xffff, size, uint64(ops[2])*0x01010101)
				g.get(at&0xffff, size)
			}
		}
		g.set(20, 1, 0)
		close(g.sent)
	})
}
