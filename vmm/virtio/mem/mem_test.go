package mem_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/cleave-project/cleave/vmm/virtio/mem"
	"github.com/cleave-project/cleave/vmm/virtio/virtiotest"
)

const (
	block = mem.BlockSize
	base  = 32 << 20 // of the 64 MiB that virtiotest has
	size  = 16 * block
)

const (
	plug, unplug, unplugAll, state = 0, 1, 2, 3
	ack, nack, refused             = 0, 1, 3
)

func device(t testing.TB, access func(uint64, uint64, bool) error) *mem.Device {
	t.Helper()
	d, err := mem.New(mem.Options{Addr: base, Size: size, Access: access})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func ask(g *virtiotest.Guest, kind uint16, addr uint64, n uint16) (answer, state uint16) {
	le := binary.LittleEndian
	b := make([]byte, 24)
	le.PutUint16(b, kind)
	le.PutUint64(b[8:], addr)
	le.PutUint16(b[16:], n)
	r := g.Queues[0].Do([][]byte{b}, 10)
	defer g.Queues[0].Free(r)
	return le.Uint16(r.Writable[0]), le.Uint16(r.Writable[0][8:])
}

func TestAGuestGrowsAndShrinks(t *testing.T) {
	d := device(t, nil)
	g := virtiotest.Plug(t, d)
	g.Start(g.Offered())
	for at, want := range map[uint64]uint64{0: block, 16: base, 24: size, 32: size, 40: 0, 48: 0} {
		if got := g.Config(at, 8); got != want {
			t.Errorf("register %d is %#x instead of %#x", at, got, want)
		}
	}
	if a, _ := ask(g, plug, base, 1); a != nack {
		t.Errorf("what nobody asked for is answered with %d", a)
	}
	if err := d.SetRequested(8 * block); err != nil {
		t.Fatal(err)
	}
	g.ConfigChanged()
	for i, c := range []struct {
		kind          uint16
		addr          uint64
		n             uint16
		answer, state uint16
	}{
		{plug, base + block, 4, ack, 0},
		{plug, base, 2, refused, 0}, // one of them is plugged
		{plug, base + 8*block, 5, nack, 0},
		{plug, base + 8*block, 4, ack, 0},
		{state, base, 1, ack, 1},
		{state, base + block, 4, ack, 0},
		{state, base, 16, ack, 2},
		{unplug, base, 2, refused, 0},
		{plug, base + 1, 1, refused, 0},
		{plug, base - block, 1, refused, 0},
		{plug, base, 0, refused, 0},
		{state, base + 15*block, 2, refused, 0},
		{state, 1<<64 - block, 2, refused, 0},
		{9, base, 1, refused, 0},
	} {
		if a, s := ask(g, c.kind, c.addr, c.n); a != c.answer || s != c.state {
			t.Errorf("%d: %+v is answered with %d, state %d", i, c, a, s)
		}
	}
	if requested, plugged := d.Size(); requested != 8*block || plugged != 8*block || g.Config(40, 8) != 8*block {
		t.Errorf("%d of %d bytes", plugged, requested)
	}
	b, err := g.Memory.Slice(base+block, block)
	if err != nil {
		t.Fatal(err)
	}
	b[0], b[block-1] = 7, 7
	g.Move(device(t, nil))
	g.Start(g.Offered()) // a reset changes nothing
	if g.Config(40, 8) != 8*block || b[0] != 7 {
		t.Error("a move or a reset takes memory away")
	}
	if a, _ := ask(g, unplug, base+block, 1); a != ack || !bytes.Equal(b, make([]byte, block)) {
		t.Errorf("answer %d, or what was unplugged has something", a)
	}
	if a, _ := ask(g, unplugAll, 0, 0); a != ack || g.Config(40, 8) != 0 {
		t.Errorf("answer %d, %d bytes are plugged", a, g.Config(40, 8))
	}
}

func TestAccessIsAskedFor(t *testing.T) {
	var calls [][3]uint64
	fail := false
	d := device(t, func(addr, size uint64, plugged bool) error {
		if fail {
			return errors.New("no")
		}
		p := uint64(0)
		if plugged {
			p = 1
		}
		calls = append(calls, [3]uint64{addr, size, p})
		return nil
	})
	if err := d.SetRequested(size); err != nil {
		t.Fatal(err)
	}
	g := virtiotest.Plug(t, d)
	g.Start(g.Offered())
	ask(g, plug, base, 3)
	ask(g, unplug, base+block, 1)
	g.Transport().Pause() // the calls are seen
	want := [][3]uint64{{base, 3 * block, 1}, {base + block, block, 0}}
	if len(calls) != 2 || calls[0] != want[0] || calls[1] != want[1] {
		t.Errorf("calls %v", calls)
	}
	fail = true
	g.Transport().Resume()
	if a, _ := ask(g, plug, base+block, 1); a != nack || g.Config(40, 8) != 2*block {
		t.Errorf("what can't be had is answered with %d", a)
	}
}

func TestWhatCanNotBeIsRefused(t *testing.T) {
	for _, o := range []mem.Options{{}, {Size: 1}, {Addr: 1, Size: block}, {Addr: 1<<64 - block, Size: 2 * block}, {Size: 1 << 62}} {
		if _, err := mem.New(o); err == nil {
			t.Errorf("%+v is taken", o)
		}
	}
	d := device(t, nil)
	if d.SetRequested(1) == nil || d.SetRequested(size+block) == nil {
		t.Error("what there isn't can be requested")
	}
	for _, bad := range []string{
		"", "{}", `{"Version":2}`, `{"Version":1,"Requested":1}`, `{"Version":1,"Requested":2097152}`,
		`{"Version":1,"Usable":33554432,"Plugged":[[15,2]]}`, `{"Version":1,"Usable":33554432,"Plugged":[[3,2],[4,1]]}`,
		`{"Version":1,"Usable":33554432,"Plugged":[[18446744073709551615,2]]}`, `{"Version":1,"Usable":33554432,"Plugged":[[0,0]]}`,
	} {
		if device(t, nil).Restore([]byte(bad)) == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	g := virtiotest.Plug(t, d)
	for _, r := range []func() *virtiotest.Request{
		func() *virtiotest.Request { return g.Queues[0].Make([][]byte{make([]byte, 24)}, 9) },
		func() *virtiotest.Request { return g.Queues[0].Make([][]byte{make([]byte, 23)}, 10) },
	} {
		g.Start(g.Offered())
		g.Queues[0].Add(r())
		g.Queues[0].Kick()
		g.Failed()
	}
}

func FuzzRequests(f *testing.F) {
	f.Add([]byte{0, 0, 3, 1, 1, 4, 2, 0, 0, 3, 0, 16})
	f.Fuzz(func(t *testing.T, ops []byte) {
		d := device(t, nil)
		if err := d.SetRequested(size / 2); err != nil {
			t.Fatal(err)
		}
		g := virtiotest.Plug(t, d)
		g.Start(g.Offered())
		for ; len(ops) >= 3; ops = ops[3:] {
			ask(g, uint16(ops[0]%5), base+uint64(int8(ops[1]))*block, uint16(ops[2]%32))
		}
		if _, plugged := d.Size(); plugged > size/2 {
			t.Errorf("%d bytes are plugged", plugged)
		}
		b, err := d.Save()
		if err != nil {
			t.Fatal(err)
		}
		if err := device(t, nil).Restore(b); err != nil {
			t.Error(err)
		}
	})
}
