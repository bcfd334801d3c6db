package uml

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/agent"
	"github.com/cleave-project/cleave/agent/link"
	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
)

// What is large comes to the agent by its control disk, whatever the guest is.
func TestLargeCopiesPassThroughTheHatch(t *testing.T) {
	e := newEngine(t)
	for name, change := range map[string]func(*engine.Spec){
		"application": func(*engine.Spec) {},
		"system":      func(s *engine.Spec) { s.System = true },
		"maintenance": func(s *engine.Spec) { s.Maintenance = true },
	} {
		t.Run(name, func(t *testing.T) {
			spec := e.spec(t, "trap : TERM; while :; do sleep 1; done")
			change(spec)
			g := e.start(t, spec)
			before := onDisk(t, g)
			c := g.client()
			var err error
			if stream := tarOf(t, []int{1 << 20}); spec.Maintenance {
				err = c.SetLayer(t.Context(), bytes.NewReader(stream))
			} else {
				err = c.Put(t.Context(), "/root", bytes.NewReader(stream))
			}
			if err != nil {
				t.Fatal(err)
			}
			if n := onDisk(t, g) - before; n < link.HatchSize/4 || n > link.HatchSize {
				t.Errorf("the control disk has %d bytes more, of a hatch of %d", n, link.HatchSize)
			}
		})
	}
}

// onDisk is how much of a guest's control disk is no hole.
func onDisk(t *testing.T, g *testGuest) int64 {
	t.Helper()
	m, err := g.e.Guest(g.spec.ID)
	if err != nil {
		t.Fatal(err)
	}
	f, err := m.Control()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var st unix.Stat_t
	if err := errors.Join(unix.Fsync(int(f.Fd())), unix.Fstat(int(f.Fd()), &st)); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// client talks to the guest's agent for the rest of the test.
func (g *testGuest) client() *agent.Client {
	g.Helper()
	return dial(g.T, g.e, g.spec.ID)
}

func dial(t testing.TB, e *testEngine, id string) *agent.Client {
	t.Helper()
	conn, err := e.Agent(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	c, err := agent.Dial(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// BenchmarkCopy is what goes over the agent's line, as `cleave cp` and the
// change of walls do, to and from the guest's own disk.
func BenchmarkCopy(b *testing.B) {
	e := newEngine(b)
	go func() { // ends with the engine
		for range e.Exits() {
			continue
		}
	}()
	spec := benchSpec(b.TempDir())
	spec.Root.Size = 512 * api.MiB
	if _, err := e.Start(b.Context(), spec); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = e.Forget(context.Background(), spec.ID) })
	c := dial(b, e, spec.ID)
	for name, files := range map[string][]int{"large": {8 << 20}, "small": slices.Repeat([]int{10 << 10}, 800)} {
		stream := tarOf(b, files)
		b.Run("into/"+name, func(b *testing.B) {
			b.SetBytes(int64(len(stream)))
			for b.Loop() {
				if err := c.Put(b.Context(), "/root", bytes.NewReader(stream)); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("out/"+name, func(b *testing.B) {
			b.SetBytes(int64(len(stream)))
			for b.Loop() {
				r, err := c.Get(b.Context(), "/root/"+fmt.Sprint(len(files)))
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, r); err != nil {
					b.Fatal(err)
				}
				_ = r.Close()
			}
		})
	}
}

// tarOf is a stream of files below a directory.
func tarOf(t testing.TB, sizes []int) []byte {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	r := rand.NewChaCha8([32]byte{1})
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprint(len(sizes)), Mode: 0o755}); err != nil {
		t.Fatal(err)
	}
	for i, size := range sizes {
		content := make([]byte, size)
		_, _ = r.Read(content)
		err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("%d/f%d", len(sizes), i), Size: int64(size), Mode: 0o644})
		if err == nil {
			_, err = w.Write(content)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}
