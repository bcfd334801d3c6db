package virtio_test

import (
	"encoding/json"
	"testing"

	"github.com/cleave-project/cleave/vmm/virtio"
	"github.com/cleave-project/cleave/vmm/virtio/rng"
)

// work has a driver make n requests.
func (g *guest) work(from, n uint16) {
	for i := range n {
		g.ask(32, from+i+1)
		g.interrupted(1)
	}
}

func TestADeviceGoesOnAfterAPause(t *testing.T) {
	g := plug(t, rng.New())
	g.Pause()
	g.Resume() // an idle device has nothing to go on with
	g.begin(virtio.FeatureVersion1)
	g.queue()
	g.set(20, 1, 15)
	g.work(0, 3)
	g.Pause()
	g.ask(32, 4)
	if n, _ := g.mem.Uint16(0x3002); n != 3 || len(g.sent) > 0 {
		t.Errorf("a paused device gave %d back", n)
	}
	g.Resume()
	g.interrupted(1)
	g.Pause()
	g.set(20, 1, 0) // a reset while it is paused
	g.Resume()
	if g.get(20, 1) != 0 {
		t.Error("the reset left something")
	}
}

func TestADeviceGoesOnElsewhere(t *testing.T) {
	g := plug(t, rng.New())
	g.begin(virtio.FeatureVersion1 | virtio.FeatureEventIndex)
	g.queue()
	g.set(20, 1, 15)
	if _, err := g.Save(); err == nil {
		t.Error("the state of a device at work was saved")
	}
	g.ask(32, 1)
	g.interrupted(1)
	g.Pause()
	s, err := g.Save()
	if err != nil {
		t.Fatal(err)
	}
	there := plug(t, rng.New())
	if err := there.mem.Write(mustSlice(t, g), 0); err != nil {
		t.Fatal(err)
	}
	if err := there.Restore(s); err != nil {
		t.Fatal(err)
	}
	if there.Restore(s) == nil {
		t.Error("a state was put over another")
	}
	there.Resume()
	there.interrupted(1) // told once more, in case that the first was lost
	if there.get(20, 1) != 15 || there.get(28, 2) != 1 {
		t.Errorf("status %#x", there.get(20, 1))
	}
	if err := there.mem.Write([]byte{1, 0}, 0x2000+4+16); err != nil { // used_event
		t.Fatal(err)
	}
	there.ask(32, 2)
	there.interrupted(1)
	if n, _ := there.mem.Uint16(0x3002); n != 2 {
		t.Errorf("%d were given back", n)
	}
}

func mustSlice(t *testing.T, g *guest) []byte {
	b, err := g.mem.Slice(0, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAStateThatCanNotBeIsRefused(t *testing.T) {
	g := plug(t, rng.New())
	g.begin(virtio.FeatureVersion1)
	g.queue()
	g.set(20, 1, 15)
	g.Pause()
	for name, spoil := range map[string]func(*virtio.TransportState){
		"version":  func(s *virtio.TransportState) { s.Version = 7 },
		"type":     func(s *virtio.TransportState) { s.Type = 2 },
		"features": func(s *virtio.TransportState) { s.Features |= 1 << 40 },
		"status":   func(s *virtio.TransportState) { s.Status = 0xff },
		"queues":   func(s *virtio.TransportState) { s.Queues = nil },
		"size":     func(s *virtio.TransportState) { s.Queues[0].Size = 3 },
		"place":    func(s *virtio.TransportState) { s.Queues[0].Desc = 1 << 40 },
		"space":    func(s *virtio.TransportState) { s.Space.Bytes = nil },
		"identity": func(s *virtio.TransportState) { s.Space.Bytes[0]++ },
		"msix":     func(s *virtio.TransportState) { s.MSIX.Table = nil },
		"device":   func(s *virtio.TransportState) { s.Device = []byte("{}") },
	} {
		s, err := g.Save()
		if err != nil {
			t.Fatal(err)
		}
		spoil(s)
		if plug(t, rng.New()).Restore(s) == nil {
			t.Errorf("%s: it is taken", name)
		}
	}
}

func FuzzState(f *testing.F) {
	g := plug(f, rng.New())
	g.begin(virtio.FeatureVersion1)
	g.queue()
	g.set(20, 1, 15)
	g.Pause()
	s, err := g.Save()
	if err != nil {
		f.Fatal(err)
	}
	b, err := json.Marshal(s)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		var s virtio.TransportState
		if json.Unmarshal(b, &s) != nil {
			return
		}
		g := plug(t, rng.New())
		go func() {
			for range g.sent {
			}
		}()
		if g.Restore(&s) == nil {
			g.Resume()
			g.Pause()
			if _, err := g.Save(); err != nil {
				t.Error(err)
			}
		}
		g.set(20, 1, 0)
		close(g.sent)
	})
}
