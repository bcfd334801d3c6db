package vmm

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/vmm/memory"
	"github.com/cleave-project/cleave/vmm/virtio/rng"
)

// snapshotFiles are new, empty ones.
func snapshotFiles(t testing.TB) Files {
	t.Helper()
	dir := t.TempDir()
	open := func(name string) *os.File {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	return Files{open("state"), open("memory")}
}

// blocks are the bytes that a file takes on its disk.
func blocks(t *testing.T, f *os.File) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// again has the state of files read from its start.
func again(t testing.TB, list ...Files) []Files {
	t.Helper()
	for _, f := range list {
		if _, err := f.State.Seek(0, 0); err != nil {
			t.Fatal(err)
		}
	}
	return list
}

// counting runs a counter until it has said n.
type counting struct {
	*Machine
	said  signals
	next  byte
	ended chan struct{}
}

func start(t *testing.T, m *Machine, said signals, next byte) *counting {
	t.Helper()
	c := &counting{m, said, next, make(chan struct{})}
	go func() { defer close(c.ended); m.mustRun(t) }()
	return c
}

// during listens to the guest until f returns: it must count without a gap.
func (c *counting) during(t *testing.T, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() { done <- f() }()
	for {
		select {
		case b := <-c.said:
			if b != c.next {
				t.Fatalf("the guest says %d instead of %d", b, c.next)
			}
			c.next++
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			return
		}
	}
}

func (c *counting) more(t *testing.T) {
	t.Helper()
	for range 5 {
		c.said.wait(t, c.next)
		c.next++
	}
}

func (c *counting) stop() {
	go func() {
		for range c.said {
		}
	}()
	c.Stop()
	<-c.ended
	close(c.said)
}

// restored makes a machine from layers, and tells what it will say next: the
// number behind that in its memory, unless it was about to say that.
func restored(t *testing.T, layers ...Files) *counting {
	t.Helper()
	said := make(signals)
	m, err := Restore(host(t), Config{Console: said, Devices: []Device{{"rng0", rng.New()}}}, again(t, layers...)...)
	if err != nil {
		t.Fatal(err)
	}
	guard := time.AfterFunc(2*time.Minute, m.Stop)
	t.Cleanup(func() { guard.Stop(); m.Close() })
	return start(t, m, said, 0)
}

// goOn lets a restored machine run and looks where it goes on.
func (c *counting) goOn(t *testing.T, last byte) {
	t.Helper()
	if err := c.Resume(); err != nil {
		t.Fatal(err)
	}
	b := <-c.said
	if b != last {
		t.Fatalf("it goes on with %d, not with %d", b, last)
	}
	c.next = b + 1
	c.more(t)
}

// generation is the number by which a guest tells that it is a clone.
func generation(t *testing.T, m *Machine) (id [16]byte) {
	t.Helper()
	if err := m.memory.Read(id[:], generationAddr); err != nil {
		t.Fatal(err)
	}
	return id
}

func TestASnapshotGoesOnSeveralTimes(t *testing.T) {
	said := make(signals)
	c := start(t, newMachine(t, counter(), said, Device{"rng0", rng.New()}), said, 1)
	c.more(t)
	c.during(t, c.Pause)
	at := c.next
	full := snapshotFiles(t)
	c.during(t, func() error { return c.Save(full, SaveOptions{Track: true}) })
	if _, err := full.Memory.Seek(0, io.SeekEnd); err != nil {
		t.Fatal(err)
	}
	if _, err := full.Memory.WriteString("what somebody keeps behind the memory"); err != nil {
		t.Fatal(err)
	}
	c.during(t, c.Resume)
	c.more(t)

	c.during(t, c.Pause)
	later := c.next
	changes := snapshotFiles(t)
	c.during(t, func() error { return c.Save(changes, SaveOptions{Changes: true, Track: true}) })
	c.during(t, c.Resume)
	c.more(t)

	// Once more, without a pause of ours.
	last := snapshotFiles(t)
	c.during(t, func() error { return c.Save(last, SaveOptions{Changes: true}) })
	c.more(t)
	if err := c.Save(snapshotFiles(t), SaveOptions{Changes: true}); err == nil {
		t.Error("changes are saved that nobody noted")
	}
	generations := map[[16]byte]bool{generation(t, c.Machine): true}
	c.stop()

	for range 2 { // clones, each from the same files
		r := restored(t, full)
		if g := generation(t, r.Machine); generations[g] {
			t.Errorf("generation %x is another's", g)
		} else {
			generations[g] = true
		}
		r.goOn(t, at)
		r.stop()
	}
	r := restored(t, full, changes)
	r.goOn(t, later)
	// What was restored can be saved as well.
	r.during(t, r.Pause)
	mark, second := r.next, snapshotFiles(t)
	r.during(t, func() error { return r.Save(second, SaveOptions{}) })
	r.stop()
	r = restored(t, second)
	r.goOn(t, mark)
	r.stop()
	r = restored(t, full, changes, last) // which was saved while it ran
	if err := r.Resume(); err != nil {
		t.Fatal(err)
	}
	r.next = <-r.said + 1
	r.more(t)
	r.stop()

	if small, all := blocks(t, changes.Memory), blocks(t, full.Memory); small > all {
		t.Errorf("changes take %d bytes, and all %d", small, all)
	}
	for _, wrong := range [][]Files{{changes}, {full, last}, {full, full}, {}} {
		if m, err := Restore(host(t), Config{Devices: []Device{{"rng0", rng.New()}}}, again(t, wrong...)...); err == nil {
			m.Close()
			t.Errorf("%d layers that don't fit together are taken", len(wrong))
		}
	}
}

func TestASnapshotThatCanNotBeIsRefused(t *testing.T) {
	m := newMachine(t, counter(), make(signals), Device{"rng0", rng.New()})
	files := snapshotFiles(t)
	if err := m.Save(files, SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	state, err := os.ReadFile(files.State.Name())
	if err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(h *header){
		"version":   func(h *header) { h.Version++ },
		"memory":    func(h *header) { h.Memory *= 2 },
		"no memory": func(h *header) { h.Memory = 0 },
		"cpus":      func(h *header) { h.CPUs = nil },
		"no cpu":    func(h *header) { h.CPUs[0] = nil },
		"apic":      func(h *header) { h.CPUs[0].LAPIC = nil },
		"xsave":     func(h *header) { h.CPUs[0].XSAVE = h.CPUs[0].XSAVE[:4096-1] },
		"cpuid":     func(h *header) { h.CPUs[0].CPUID = nil },
		"chips":     func(h *header) { h.Chips = h.Chips[:1] },
		"chip":      func(h *header) { h.Chips[0] = nil },
		"slot":      func(h *header) { h.Devices[0].Slot = 77 },
		"bridge":    func(h *header) { h.Devices[0].Slot = 0 },
		"name":      func(h *header) { h.Devices[0].Name = "another" },
		"device":    func(h *header) { h.Devices[0].Virtio = nil },
		"twice":     func(h *header) { h.Devices = append(h.Devices, h.Devices[0]) },
		"runs":      func(h *header) { h.Runs = []run{{5, 1 << 62}} },
		"base":      func(h *header) { h.Base = "x" },
	} {
		var h header
		if err := json.Unmarshal(state, &h); err != nil {
			t.Fatal(err)
		}
		spoil(&h)
		b, err := json.Marshal(&h)
		if err != nil {
			t.Fatal(err)
		}
		f := snapshotFiles(t)
		if _, err := f.State.Write(b); err != nil {
			t.Fatal(err)
		}
		f.Memory = files.Memory
		if m, err := Restore(host(t), Config{Devices: []Device{{"rng0", rng.New()}}}, again(t, f)...); err == nil {
			m.Close()
			t.Errorf("%s: it is taken", name)
		}
	}
}

func TestOnlyWhatIsNotZeroTakesRoom(t *testing.T) {
	m := newMachine(t, counter(), make(signals))
	b, _ := m.memory.Slice(8<<20, 3*memory.PageSize)
	copy(b[memory.PageSize:], "one page")
	f := snapshotFiles(t)
	if err := m.Save(f, SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 3*memory.PageSize)
	if _, err := f.Memory.ReadAt(got, 8<<20); err != nil || !bytes.Equal(got, b) {
		t.Errorf("memory is another: %v", err)
	}
	if n := blocks(t, f.Memory); n > 1<<20 {
		t.Errorf("16 MiB of zeroes take %d bytes", n)
	}
}

func FuzzSnapshot(f *testing.F) {
	f.Add([]byte(`{"Version":1,"Memory":16777216,"CPUs":[{}],"Chips":["","",""]}`))
	f.Add([]byte(strings.Repeat("[", 1000)))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := readState(bytes.NewReader(b))
		if err == nil && (h.Memory == 0 || len(h.CPUs) == 0) {
			t.Error("a machine of nothing is taken")
		}
	})
}
