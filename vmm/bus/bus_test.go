package bus

import (
	"bytes"
	"testing"
)

// echo answers with its name, and remembers what was written.
type echo struct {
	name byte
	at   uint64
	got  []byte
}

func (e *echo) Read(off uint64, p []byte) {
	for i := range p {
		p[i] = e.name
	}
	e.at = off
}
func (e *echo) Write(off uint64, p []byte) { e.at, e.got = off, bytes.Clone(p) }

func TestAccessesFindTheirDevice(t *testing.T) {
	var b Bus
	devices := map[uint64]*echo{0x10: {name: 1}, 0x18: {name: 2}, 0x100: {name: 3}}
	for at, d := range devices {
		if err := b.Add(at, 8, d); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		addr uint64
		n    int
		want byte
	}{
		{0x10, 1, 1},
		{0x17, 1, 1},
		{0x18, 8, 2},
		{0x1f, 1, 2},
		{0x107, 1, 3},
		{0xf, 1, 0xff},
		{0x20, 1, 0xff},
		{0x17, 2, 0xff},
		{0x14, 8, 0xff},
		{0x108, 1, 0xff},
		{0, 8, 0xff},
		{^uint64(0), 8, 0xff},
	} {
		p := make([]byte, c.n)
		b.Read(c.addr, p)
		for _, got := range p {
			if got != c.want {
				t.Errorf("%d bytes at %#x: % x, want %x", c.n, c.addr, p, c.want)
				break
			}
		}
	}
	b.Write(0x1c, []byte{9, 8})
	if d := devices[0x18]; d.at != 4 || !bytes.Equal(d.got, []byte{9, 8}) {
		t.Errorf("got %+v", d)
	}
	b.Remove(0x18)
	p := []byte{0}
	if b.Read(0x18, p); p[0] != 0xff {
		t.Error("a device that was removed answers")
	}
}

func TestRangesDontOverlap(t *testing.T) {
	var b Bus
	if err := b.Add(0x10, 8, &echo{}); err != nil {
		t.Fatal(err)
	}
	for _, c := range [][2]uint64{{0x10, 8}, {0x17, 1}, {0xf, 2}, {0, 0x100}, {0x12, 2}, {0x30, 0}, {^uint64(0), 2}} {
		if err := b.Add(c[0], c[1], &echo{}); err == nil {
			t.Errorf("%d bytes at %#x were given twice", c[1], c[0])
		}
	}
	if err := b.Add(0x8, 8, &echo{}); err != nil {
		t.Error(err)
	}
}
