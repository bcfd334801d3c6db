package monitor

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cleave-project/cleave/vmm"
	"github.com/cleave-project/cleave/vmm/control"
	"github.com/cleave-project/cleave/vmm/memory"
	"github.com/cleave-project/cleave/vmm/pages"
)

// saved are the layers of a guest that has counted, and what it says next.
func saved(t *testing.T) (layers []vmm.Files, next byte) {
	t.Helper()
	said := newSequence()
	s := newStation(t, kernel(t, walking()), said)
	said.more(t)
	return s.layers(t, 3), said.next
}

// rewound has states of layers be read from their start.
func rewound(t *testing.T, layers []vmm.Files) []vmm.Files {
	t.Helper()
	for _, f := range layers {
		if _, err := f.State.Seek(0, 0); err != nil {
			t.Fatal(err)
		}
	}
	return layers
}

// duplicate is a file that a monitor may close.
func duplicate(t *testing.T, f *os.File) *os.File {
	t.Helper()
	d, err := os.Open(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// connected are both ends of a connection.
func connected(t *testing.T) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.Dial("unix", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// TestAGuestGoesOnWhileItsMemoryIsFetched has several guests go on from a
// snapshot of three layers, of which they get nothing but the last state.
func TestAGuestGoesOnWhileItsMemoryIsFetched(t *testing.T) {
	if faults(t) == nil {
		t.Skip("no " + memory.FaultDevice)
	}
	layers, next := saved(t)
	source, err := vmm.OpenMemory(rewound(t, layers)...)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		said := newSequence()
		said.next = next
		a, b := connected(t)
		served := make(chan error, 1)
		go func() { served <- pages.Serve(t.Context(), a, source) }()
		s := openStation(t, said, func(c *Config) {
			c.Restore = []vmm.Files{{State: duplicate(t, layers[2].State)}}
			c.Pages = &Pages{Conn: b, Faults: faults(t)}
		})
		said.more(t)
		if err := <-served; err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(time.Minute); ; { // it doesn't tell when it has all
			m, err := s.Migration(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if m.State == "" && m.Left == 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%+v", m)
			}
		}
		again := vmm.Files{State: backing(t, 0), Memory: backing(t, 0)}
		if err := s.Save(t.Context(), control.Save{}, again.State, again.Memory); err != nil {
			t.Fatal(err)
		}
		said.more(t)
		if err := s.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := <-s.ended; err != nil {
			t.Fatal(err)
		}
	}
}

// TestAGuestWhoseMemoryDoesNotComeEnds cuts the connection before the state is
// read, and behind some of the memory.
func TestAGuestWhoseMemoryDoesNotComeEnds(t *testing.T) {
	if faults(t) == nil {
		t.Skip("no " + memory.FaultDevice)
	}
	layers, _ := saved(t)
	source, err := vmm.OpenMemory(rewound(t, layers)...)
	if err != nil {
		t.Fatal(err)
	}
	for name, serve := range map[string]func(net.Conn){
		"nothing comes": func(c net.Conn) { c.Close() },
		"the greeting comes": func(c net.Conn) {
			ctx, cancel := context.WithCancel(t.Context())
			_ = pages.Serve(ctx, c, &ending{source, cancel, 0})
		},
		"some comes": func(c net.Conn) {
			ctx, cancel := context.WithCancel(t.Context())
			_ = pages.Serve(ctx, c, &ending{source, cancel, 5})
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := connected(t)
			go serve(a)
			m, err := New(host(t), Config{
				CPUs: 1, Memory: 16 << 20, Console: newSequence(), Disks: []Disk{{Disk: control.Disk{Name: "d"}, File: backing(t, 1<<20)}},
				Restore: []vmm.Files{{State: duplicate(t, layers[2].State)}}, Pages: &Pages{Conn: b, Faults: faults(t)},
			})
			if err == nil {
				_, err = m.Run(t.Context())
			}
			if err == nil || !strings.Contains(err.Error(), "fetch the memory of the guest") {
				t.Errorf("it ends by %v", err)
			}
		})
	}
}

// ending is a source that ends a context after some reads.
type ending struct {
	pages.Source
	cancel func()
	reads  int
}

func (e *ending) ReadAt(p []byte, off int64) (int, error) {
	if e.reads--; e.reads < 0 {
		e.cancel()
		return 0, errors.New("it is gone")
	}
	return e.Source.ReadAt(p, off)
}

func TestWhatIsMissingForFetchingIsSaid(t *testing.T) {
	layers, _ := saved(t)
	_, b := connected(t)
	for want, c := range map[string]Config{
		memory.FaultDevice: {Restore: layers[:1], Pages: &Pages{Conn: b}},
		"last layer alone": {Restore: layers, Pages: &Pages{Conn: b, Faults: backing(t, 0)}},
	} {
		c.CPUs, c.Memory, c.Console = 1, 16<<20, newSequence()
		if _, err := New(host(t), c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; wanted %q", err, want)
		}
	}
}
