package monitor

import (
	"encoding/binary"
	"net"
	"os"
	"strconv"
	"testing"

	"github.com/cleave-project/cleave/vmm"
	"github.com/cleave-project/cleave/vmm/control"
	"github.com/cleave-project/cleave/vmm/pages"
)

// TestAGuestIsSavedAndRestoredOverAndOver has a guest that counts in many pages
// go on from snapshots of itself, which were taken while it ran: from one, from
// one and its changes, and while its memory is fetched. In the end no count of
// any page may be missing.
func TestAGuestIsSavedAndRestoredOverAndOver(t *testing.T) {
	cycles := 50
	if n, err := strconv.Atoi(os.Getenv("CLEAVE_TEST_CYCLES")); err == nil {
		cycles = n
	}
	said := newSequence()
	at := newStation(t, kernel(t, walking()), said)
	for i := range cycles {
		said.more(t)
		layers := at.layers(t, 1+i%3)
		next := said.next
		source, err := vmm.OpenMemory(rewound(t, layers)...)
		if err != nil {
			t.Fatal(err)
		}
		counted(t, source)
		said = newSequence()
		said.next = next
		restore := again(t, layers)
		at = openStation(t, said, func(c *Config) {
			if c.Restore = restore; i%2 == 1 && faults(t) != nil {
				c.Restore = []vmm.Files{{State: restore[len(restore)-1].State}}
				c.Pages = &Pages{Conn: serving(t, source), Faults: faults(t)}
			}
		})
	}
	said.more(t)
	t.Logf("%d cycles", cycles)
}

// layers are snapshots of a guest that runs, of which the last one ends it.
func (s *station) layers(t *testing.T, n int) (layers []vmm.Files) {
	t.Helper()
	// All of it has come, which a guest that is saved must have.
	for m, err := s.Migration(t.Context()); m.State == control.Following; m, err = s.Migration(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range n {
		f := vmm.Files{State: backing(t, 0), Memory: backing(t, 0)}
		if i == n-1 { // what it says behind its last snapshot it would say again
			if err := s.Pause(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Save(t.Context(), control.Save{Track: true, Changes: i > 0}, f.State, f.Memory); err != nil {
			t.Fatal(err)
		}
		layers = append(layers, f)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-s.ended; err != nil {
		t.Fatal(err)
	}
	return layers
}

// again are duplicates of files, for a monitor.
func again(t *testing.T, layers []vmm.Files) (out []vmm.Files) {
	t.Helper()
	for _, f := range layers {
		out = append(out, vmm.Files{State: duplicate(t, f.State), Memory: duplicate(t, f.Memory)})
	}
	return out
}

// serving is a connection by which a memory comes.
func serving(t *testing.T, source pages.Source) net.Conn {
	t.Helper()
	a, b := connected(t)
	go func() {
		if err := pages.Serve(t.Context(), a, source); err != nil && t.Context().Err() == nil {
			t.Error(err)
		}
	}()
	return b
}

// counted fails unless the guest's pages have the same count, or those from one
// on one less.
func counted(t *testing.T, memory *vmm.SavedMemory) {
	t.Helper()
	first, less := uint32(0), false
	for n := range walkingPages {
		var b [4]byte
		if _, err := memory.ReadAt(b[:], scratch+int64(n)<<12); err != nil {
			t.Fatal(err)
		}
		v := binary.LittleEndian.Uint32(b[:])
		switch {
		case n == 0:
			first = v
		case v == first && !less:
		case v == first-1:
			less = true
		default:
			t.Fatalf("page %d has counted to %d, and the first to %d", n, v, first)
		}
	}
}
