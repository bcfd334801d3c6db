package pmem_test

import (
	"errors"
	"sync/atomic"
	"testing"

	"github.com/cleave-project/cleave/vmm/virtio/pmem"
	"github.com/cleave-project/cleave/vmm/virtio/virtiotest"
)

func device(t testing.TB, flush func() error) *pmem.Device {
	t.Helper()
	d, err := pmem.New(pmem.Options{Start: 1 << 32, Size: 4 * pmem.Align, Flush: flush})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestFlushes(t *testing.T) {
	var flushes, fail atomic.Int64
	flush := func() error {
		flushes.Add(1)
		if fail.Load() != 0 {
			return errors.New("the disk is gone")
		}
		return nil
	}
	g := virtiotest.Plug(t, device(t, flush))
	g.Start(g.Offered())
	if g.Config(0, 8) != 1<<32 || g.Config(8, 8) != 4*pmem.Align {
		t.Errorf("%d bytes at %#x", g.Config(8, 8), g.Config(0, 8))
	}
	ask := func(kind byte) byte {
		r := g.Queues[0].Do([][]byte{{kind, 0, 0, 0}}, 4)
		return r.Writable[0][0]
	}
	if a := ask(0); a != 0 || flushes.Load() != 1 {
		t.Errorf("answer %#x after %d flushes", a, flushes.Load())
	}
	if a := ask(1); a != 0xff {
		t.Errorf("what isn't known is answered with %#x", a)
	}
	fail.Store(1)
	if a := ask(0); a != 0xff {
		t.Errorf("a failure is answered with %#x", a)
	}
	g.Move(device(t, nil))
	if a := ask(0); a != 0 || flushes.Load() != 2 {
		t.Errorf("answer %#x after %d flushes", a, flushes.Load())
	}
}

func TestWhatCanNotBeIsRefused(t *testing.T) {
	for _, o := range []pmem.Options{{}, {Size: 4096}, {Start: 4096, Size: pmem.Align}, {Start: 1<<64 - pmem.Align, Size: 2 * pmem.Align}} {
		if _, err := pmem.New(o); err == nil {
			t.Errorf("%+v is taken", o)
		}
	}
	if device(t, nil).Restore([]byte("{}")) == nil {
		t.Error("a state is taken")
	}
	g := virtiotest.Plug(t, device(t, nil))
	for _, make := range []func() *virtiotest.Request{
		func() *virtiotest.Request { return g.Queues[0].Make([][]byte{{0, 0, 0}}, 4) },
		func() *virtiotest.Request { return g.Queues[0].Make([][]byte{{0, 0, 0, 0}}, 3) },
	} {
		g.Start(g.Offered())
		g.Queues[0].Add(make())
		g.Queues[0].Kick()
		g.Failed()
	}
}

func FuzzRequest(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0}, byte(3))
	f.Fuzz(func(t *testing.T, b []byte, room byte) {
		g := virtiotest.Plug(t, device(t, nil))
		g.Start(g.Offered())
		r := g.Queues[0].Make([][]byte{b}, int(room)+1)
		g.Queues[0].Add(r)
		g.Queues[0].Kick()
		if len(b) < 4 || room < 3 {
			g.Failed()
			return
		}
		g.Queues[0].Wait(r)
	})
}

func TestItIsRestoredWhereItWas(t *testing.T) {
	b, err := device(t, nil).Save()
	if err != nil {
		t.Fatal(err)
	}
	if err := device(t, nil).Restore(b); err != nil {
		t.Error(err)
	}
	other, err := pmem.New(pmem.Options{Start: 1 << 33, Size: 4 * pmem.Align})
	if err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{"elsewhere": other.Restore(b), "nothing": other.Restore(nil), "no version": other.Restore([]byte("{}"))} {
		if err == nil {
			t.Errorf("%s: it is restored", name)
		}
	}
}

func FuzzRestore(f *testing.F) {
	b, _ := device(f, nil).Save()
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) { _ = device(t, nil).Restore(b) })
}
