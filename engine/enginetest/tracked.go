package enginetest

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
)

// trackedDisks keeps a copy of a root disk by what is told to have changed,
// while its guest runs and when it runs again; after a guest that was killed,
// nothing is known.
func (s *suite) trackedDisks(t *testing.T) {
	tracker, ok := s.Engine.(engine.Tracker)
	if !ok || !s.caps.Track {
		t.Skipf("engine %s doesn't tell what changes", s.Engine.Name())
	}
	spec := s.spec(t, `rm -f /end; while ! [ -e /end ]; do sleep 1; done`)
	spec.Mounts = []engine.Mount{{Source: s.Volume(t), Target: "/data", Owned: true, Disk: true, Size: 32 * api.MiB}}
	r := &replica{suite: s, Tracker: tracker, t: t, id: spec.ID, path: filepath.Join(spec.Root.Dir, engine.RootDisk)}
	s.start(t, spec)
	one := r.mark("root")
	volume := r.mark("volume-0")
	r.copy()
	r.guest("dd if=/dev/urandom of=/one bs=64k count=20 && sync")
	if n := r.update(one); n < 20<<16 || n > 16<<20 {
		t.Errorf("%d bytes were changed by writing %d", n, 20<<16)
	}
	two := r.mark("root")
	r.guest("dd if=/dev/urandom of=/data/two bs=64k count=1 && sync")
	if c := r.changed("volume-0", volume); c.Lost != "" || len(c.Ranges) == 0 || c.Size != int64(spec.Mounts[0].Size) {
		t.Errorf("of the volume: %+v", c)
	}
	r.guest("dd if=/dev/urandom of=/three bs=64k count=3 && sync && touch /end")
	s.exits.of(t, spec.ID)
	restart := func() {
		if err := s.Engine.Clean(t.Context(), spec.ID); err != nil {
			t.Fatal(err)
		}
		s.start(t, spec)
	}
	restart()
	r.guest("dd if=/dev/urandom of=/one bs=64k count=5 conv=notrunc && sync")
	if n := r.update(two); n < 8<<16 || n > 16<<20 {
		t.Errorf("%d bytes were changed by writing %d", n, 8<<16)
	}
	if err := r.ForgetMark(t.Context(), spec.ID, "root", one); err != nil {
		t.Error(err)
	}
	if c := r.changed("root", one); !strings.Contains(c.Lost, "forgotten") {
		t.Errorf("after it was forgotten: %q", c.Lost)
	}
	_, err := r.MarkDisk(t.Context(), spec.ID, "none")
	wants(t, err, api.CodeNotFound, "none")
	if err := s.Engine.Signal(t.Context(), spec.ID, "SIGKILL"); err != nil {
		t.Fatal(err)
	}
	s.exits.nth(t, spec.ID, 2)
	restart()
	c := r.changed("root", two)
	if !strings.Contains(c.Lost, "order") || len(c.Ranges) != 1 || c.Ranges[0] != (engine.Range{Size: c.Size}) {
		t.Errorf("after it was killed: %+v", c)
	}
}

// replica is a copy of a guest's root disk.
type replica struct {
	*suite
	engine.Tracker
	t        *testing.T
	id, path string
	content  []byte
}

func (r *replica) mark(disk string) string {
	r.t.Helper()
	m, err := r.MarkDisk(r.t.Context(), r.id, disk)
	if err != nil {
		r.t.Fatal(err)
	}
	return m
}

func (r *replica) guest(script string) {
	r.t.Helper()
	if out, code := r.exec(r.t, r.id, "/bin/sh", "-c", script); code != 0 {
		r.t.Fatalf("exit %d: %s", code, out)
	}
}

func (r *replica) changed(disk, mark string) engine.Changes {
	r.t.Helper()
	c, err := r.ChangedSince(r.t.Context(), r.id, disk, mark)
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

// copy copies all of the disk, while the guest runs.
func (r *replica) copy() {
	r.t.Helper()
	b, err := os.ReadFile(r.path)
	if err != nil {
		r.t.Fatal(err)
	}
	r.content = b
}

// update copies what was changed, while the guest stands still, and compares.
func (r *replica) update(mark string) (n int64) {
	r.t.Helper()
	if err := r.Engine.Pause(r.t.Context(), r.id); err != nil {
		r.t.Fatal(err)
	}
	defer func() {
		if err := r.Engine.Resume(r.t.Context(), r.id); err != nil {
			r.t.Error(err)
		}
	}()
	c := r.changed("root", mark)
	if c.Lost != "" || c.Size != int64(len(r.content)) {
		r.t.Fatalf("%s, %d bytes instead of %d", c.Lost, c.Size, len(r.content))
	}
	f, err := os.Open(r.path)
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	for _, part := range c.Ranges {
		if _, err := f.ReadAt(r.content[part.Offset:part.Offset+part.Size], part.Offset); err != nil {
			r.t.Fatal(err)
		}
		n += part.Size
	}
	whole, err := io.ReadAll(f)
	if err != nil || !bytes.Equal(whole, r.content) {
		r.t.Errorf("the copy isn't the disk: %v", err)
	}
	return n
}
