package pci

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cleave-project/cleave/vmm/bus"
)

// card is a function with 16 KiB of memory that answers its BAR's number.
type card struct {
	space *Space
	wrote []byte
}

func (c *card) Space() *Space { return c.space }
func (c *card) ReadBAR(n int, _ uint64, data []byte) {
	for i := range data {
		data[i] = byte(n + 1)
	}
}

func (c *card) WriteBAR(_ int, offset uint64, data []byte) {
	c.wrote = append([]byte{byte(offset)}, data...)
}

const window = 0xc0000000

func newCard() *card {
	c := &card{space: NewSpace(ID{Vendor: 0x1af4, Device: 0x1042, Class: 0x018000, Revision: 1})}
	c.space.AddBAR(0, 16<<10, window)
	return c
}

func plugged(t *testing.T) (*Bus, *bus.Bus, *card) {
	t.Helper()
	var memory bus.Bus
	b, c := NewBus(&memory), newCard()
	if n := b.Free(); n != 1 {
		t.Fatalf("slot %d is free", n)
	}
	if err := b.Add(1, c); err != nil {
		t.Fatal(err)
	}
	return b, &memory, c
}

const slot1 = 1 << 15

func read32(b bus.Device, at uint64) uint32 {
	p := make([]byte, 4)
	b.Read(at, p)
	return binary.LittleEndian.Uint32(p)
}

func write32(b bus.Device, at uint64, v uint32) {
	b.Write(at, binary.LittleEndian.AppendUint32(nil, v))
}

func TestBothWaysLeadToTheSame(t *testing.T) {
	b, _, _ := plugged(t)
	if got := read32(b, slot1); got != 0x10421af4 {
		t.Errorf("by ECAM: %#x", got)
	}
	p := b.Ports()
	write32(p, 0, portEnable|1<<11|regClass&^3)
	if got := read32(p, 4); got != 0x01800001 {
		t.Errorf("by ports: %#x", got)
	}
	if got := read32(p, 0); got != portEnable|1<<11|8 {
		t.Errorf("the latch is %#x", got)
	}
	for what, got := range map[string]uint32{"empty slot": read32(b, 5<<15), "other function": read32(b, slot1|1<<12), "beyond": read32(b, 40<<15)} {
		if got != 0xffffffff {
			t.Errorf("%s: %#x", what, got)
		}
	}
	write32(p, 0, portEnable|1<<16)
	if got := read32(p, 4); got != 0xffffffff {
		t.Errorf("another bus: %#x", got)
	}
}

func TestBARsAreSizedAndMoved(t *testing.T) {
	b, memory, c := plugged(t)
	at := func(addr uint64) byte {
		p := []byte{0}
		memory.Read(addr, p)
		return p[0]
	}
	if at(window) != 0xff {
		t.Error("memory answers before it was turned on")
	}
	write32(b, slot1+regCommand, commandMemory)
	if at(window) != 1 || at(window+16<<10-1) != 1 || at(window+16<<10) != 0xff {
		t.Error("the BAR isn't where it was placed")
	}
	write32(b, slot1+regBAR, 0xffffffff)
	if got := read32(b, slot1+regBAR); got != 0xffffc004 {
		t.Errorf("the size is told as %#x", got)
	}
	write32(b, slot1+regBAR, window+0x100000)
	if at(window) != 0xff || at(window+0x100000) != 1 {
		t.Error("the BAR wasn't moved")
	}
	memory.Write(window+0x100002, []byte{7})
	if diff := cmp.Diff([]byte{2, 7}, c.wrote); diff != "" {
		t.Error(diff)
	}
	b.Remove(1)
	if at(window+0x100000) != 0xff || read32(b, slot1) != 0xffffffff {
		t.Error("a device that was removed answers")
	}
}

func TestGuestsCantWriteWhatTheyAre(t *testing.T) {
	b, _, _ := plugged(t)
	for off := uint64(0); off < SpaceSize; off += 4 {
		if off < regBAR || off >= regBAR+8 {
			write32(b, slot1+off, 0xffffffff)
		}
	}
	if got := read32(b, slot1); got != 0x10421af4 {
		t.Errorf("identity %#x", got)
	}
	if got := read32(b, slot1+regCommand); got != commandBits {
		t.Errorf("command %#x", got)
	}
}

// line records what becomes of interrupts.
type line struct {
	sent   []int
	routes map[int]uint64
}

func (l *line) Route(n int, addr uint64, _ uint32, ok bool) {
	delete(l.routes, n)
	if ok {
		l.routes[n] = addr
	}
}
func (l *line) Signal(n int) { l.sent = append(l.sent, n) }

func TestMessagesWaitUntilTheyMayGo(t *testing.T) {
	l := &line{routes: map[int]uint64{}}
	s := NewSpace(ID{})
	m, err := NewMSIX(s, 3, 0, 0x2000, 0x3000, l)
	if err != nil {
		t.Fatal(err)
	}
	control := func(v uint16) {
		s.Write(m.cap+controlInCap, binary.LittleEndian.AppendUint16(nil, v))
	}
	m.Raise(1)
	control(msixEnable)
	if len(l.sent) != 0 || !m.Enabled() {
		t.Errorf("sent %v before it was enabled", l.sent)
	}
	m.WriteTable(16, []byte{0, 0, 0xe0, 0xfe, 0, 0, 0, 0})
	m.WriteTable(24, []byte{0x41, 0, 0, 0})
	m.Raise(1)
	pending := make([]byte, 8)
	if m.ReadPending(0, pending); pending[0] != 2 || len(l.sent) != 0 {
		t.Errorf("pending %x, sent %v", pending, l.sent)
	}
	m.WriteTable(28, []byte{0, 0, 0, 0}) // unmask
	if diff := cmp.Diff([]int{1}, l.sent); diff != "" || l.routes[1] != 0xfee00000 {
		t.Errorf("%s, routes %v", diff, l.routes)
	}
	control(msixEnable | msixMaskAll)
	m.Raise(1)
	saved, space := m.Save(), s.Save()
	control(msixEnable)
	if len(l.sent) != 2 {
		t.Errorf("sent %v", l.sent)
	}
	// Another one goes on from where this was.
	l2, s2 := &line{routes: map[int]uint64{}}, NewSpace(ID{})
	m2, _ := NewMSIX(s2, 3, 0, 0x2000, 0x3000, l2)
	if err := errors.Join(s2.Restore(space), m2.Restore(saved)); err != nil {
		t.Fatal(err)
	}
	if len(l2.sent) != 0 {
		t.Error("a masked message was sent")
	}
	s2.Write(m2.cap+controlInCap, binary.LittleEndian.AppendUint16(nil, msixEnable))
	if diff := cmp.Diff([]int{1}, l2.sent); diff != "" {
		t.Error(diff)
	}
}

func FuzzGuest(f *testing.F) {
	f.Add([]byte{4, 0, 2, 16, 0, 255})
	f.Fuzz(func(t *testing.T, ops []byte) {
		var memory bus.Bus
		b := NewBus(&memory)
		c := newCard()
		l := &line{routes: map[int]uint64{}}
		m, err := NewMSIX(c.space, 3, 0, 0x2000, 0x3000, l)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Add(1, c); err != nil {
			t.Fatal(err)
		}
		for ; len(ops) >= 6; ops = ops[6:] {
			at := slot1 + uint64(binary.LittleEndian.Uint16(ops))
			b.Write(at, ops[2:6])
			m.WriteTable(at&0xff, ops[2:6])
			m.Raise(int(ops[0]))
			b.Ports().Write(at&7, ops[2:6])
			b.Ports().Read(at&7, make([]byte, 4))
			memory.Read(uint64(binary.LittleEndian.Uint32(ops[2:])), make([]byte, 8))
		}
	})
}
