package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// fake notes what it is told.
type fake struct {
	mu   sync.Mutex
	told []string
}

func (f *fake) note(format string, args ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.told = append(f.told, fmt.Sprintf(format, args...))
	return nil
}

func (f *fake) all() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.told)
}

func content(f *os.File) string {
	defer f.Close()
	b, _ := io.ReadAll(f)
	return string(b)
}

func (f *fake) Status(context.Context) (Status, error) {
	return Status{State: "running", CPUs: 2, Devices: []string{"disk0"}}, nil
}
func (f *fake) Metrics(context.Context) (Metrics, error) { return Metrics{}, nil }
func (f *fake) Pause(context.Context) error              { return f.note("pause") }
func (f *fake) Resume(context.Context) error             { return errors.New("it is not paused") }
func (f *fake) PowerButton(context.Context) error        { return f.note("power") }
func (f *fake) Reset(context.Context) error              { return f.note("reset") }
func (f *fake) Stop(context.Context) error               { return f.note("stop") }
func (f *fake) AddDisk(_ context.Context, d Disk, file, changes *os.File) error {
	record := "none"
	if changes != nil {
		record = content(changes)
	}
	return f.note("disk %s %v %s, record %s", d.Name, d.ReadOnly, content(file), record)
}

func (f *fake) MarkDisk(_ context.Context, d DiskMark) (DiskMark, error) {
	d.Mark = "made"
	return d, f.note("mark %s", d.Name)
}

// Changed tells of three ranges, one at a time, or of a mark that was lost
// after the first.
func (f *fake) Changed(_ context.Context, s ChangedSince) (Changed, error) {
	c := Changed{Size: 30, Ranges: [][2]int64{{s.From, 5}}, Next: s.From + 10}
	switch {
	case s.Mark == "lost" && s.From > 0:
		c = Changed{Size: 30, Lost: "forgotten", Ranges: [][2]int64{{0, 30}}}
	case s.From == 20:
		c.Next = 0
	}
	return c, nil
}

func (f *fake) ForgetMark(_ context.Context, d DiskMark) error {
	return f.note("forget %s %s", d.Name, d.Mark)
}

func (f *fake) AddNet(_ context.Context, n Net, files []*os.File) error {
	return f.note("net %s %s of %d", n.MAC, content(files[0]), len(files))
}
func (f *fake) Remove(_ context.Context, r Remove) error { return f.note("remove %s", r.Name) }
func (f *fake) SetLimits(_ context.Context, l SetLimits) error {
	return f.note("limit %s %d", l.Name, l.Limits.BytesPerSecond)
}

func (f *fake) SetMemory(_ context.Context, m SetMemory) error { return f.note("memory %d", m.Bytes) }

func (f *fake) ResizeDisk(_ context.Context, r ResizeDisk) error {
	return f.note("resize %s %d", r.Name, r.Bytes)
}

func (f *fake) Migrate(_ context.Context, m Migrate, files []*os.File) (Migration, error) {
	return Migration{State: Gone}, f.note("migrate %s %d", m.Downtime, len(files))
}

func (f *fake) Migration(context.Context) (Migration, error) {
	return Migration{State: Undecided}, nil
}
func (f *fake) CancelMigration(context.Context) error { return f.note("cancel") }
func (f *fake) SettleMigration(_ context.Context, s Settle) error {
	return f.note("settle %v", s.Here)
}

func (f *fake) Save(_ context.Context, o Save, state, memory *os.File) error {
	return f.note("save %v %s %s", o.Changes, content(state), content(memory))
}

// served returns a client of a machine, and the socket's path.
func served(t *testing.T, m Machine) (*Client, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); Serve(ctx, l, m) }()
	t.Cleanup(func() { cancel(); <-done })
	c, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, path
}

func file(t *testing.T, text string) *os.File {
	t.Helper()
	name := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestAMachineIsToldByItsSocket(t *testing.T) {
	m := &fake{}
	c, _ := served(t, m)
	ctx := t.Context()
	for _, err := range []error{
		c.Pause(ctx), c.PowerButton(ctx), c.Reset(ctx), c.Stop(ctx),
		c.AddDisk(ctx, Disk{Name: "d", ReadOnly: true}, file(t, "a disk"), nil),
		c.AddDisk(ctx, Disk{Name: "e"}, file(t, "a disk"), file(t, "of it")), c.ForgetMark(ctx, DiskMark{"e", "m"}),
		c.AddNet(ctx, Net{MAC: "02:00:00:00:00:01"}, []*os.File{file(t, "a tap"), file(t, "")}),
		c.Remove(ctx, Remove{Name: "d"}),
		c.SetLimits(ctx, SetLimits{"d", Limits{BytesPerSecond: 5}}),
		c.SetMemory(ctx, SetMemory{Bytes: 7}), c.ResizeDisk(ctx, ResizeDisk{"d", 8}),
		c.Save(ctx, Save{Changes: true}, file(t, "state"), file(t, "memory")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	want := []string{
		"pause", "power", "reset", "stop", "disk d true a disk, record none", "disk e false a disk, record of it", "forget e m", "net 02:00:00:00:00:01 a tap of 2", "remove d", "limit d 5", "memory 7", "resize d 8",
		"save true state memory",
	}
	if d := cmp.Diff(want, m.all()); d != "" {
		t.Error(d)
	}
	s, err := c.Status(ctx)
	if err != nil || s.CPUs != 2 {
		t.Errorf("status %+v, %v", s, err)
	}
	if err := c.Resume(ctx); err == nil || err.Error() != "it is not paused" {
		t.Errorf("an error comes as %v", err)
	}
}

func TestChangesComeInParts(t *testing.T) {
	c, _ := served(t, &fake{})
	made, err := c.MarkDisk(t.Context(), DiskMark{Name: "d"})
	if diff := cmp.Diff(DiskMark{"d", "made"}, made); diff != "" || err != nil {
		t.Error(diff, err)
	}
	got, err := AllChanged(t.Context(), c, made)
	if diff := cmp.Diff(Changed{Size: 30, Ranges: [][2]int64{{0, 5}, {10, 5}, {20, 5}}}, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
	got, err = AllChanged(t.Context(), c, DiskMark{"d", "lost"})
	if diff := cmp.Diff(Changed{Size: 30, Lost: "forgotten", Ranges: [][2]int64{{0, 30}}}, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
	long := [2]int64{1<<63 - 1, 1<<63 - 1}
	b, err := json.Marshal(Changed{Ranges: slices.Repeat([][2]int64{long}, MaxRanges), Next: 1<<63 - 1})
	if err != nil || len(b) > maxLine-1024 {
		t.Errorf("a reply may take %d bytes, %v", len(b), err)
	}
}

func TestWhatIsNoRequestIsRefused(t *testing.T) {
	m := &fake{}
	c, _ := served(t, m)
	for do, want := range map[string]string{"dance": "no request", "add-disk": "1 to 2 files"} {
		if err := c.ask(t.Context(), do, nil, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", do, err)
		}
	}
	if err := c.ask(t.Context(), "remove", map[string]int{"nme": 1}, nil); err == nil {
		t.Error("a field that isn't known is taken")
	}
	if told := m.all(); len(told) > 0 {
		t.Errorf("it was told %q", told)
	}
	if _, err := c.conn.Write([]byte(strings.Repeat(" ", maxLine+8192))); err == nil {
		if _, err := c.in.line(); err == nil {
			t.Error("a line without an end is taken")
		}
	}
}

func TestAConnectionTooManyIsClosed(t *testing.T) {
	_, path := served(t, &fake{})
	for range maxConnections - 1 {
		c, err := Dial(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	c, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.Pause(t.Context()) == nil {
		t.Error("it is served")
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte(`{"id":1,"do":"add-disk","args":{"name":"d"},"files":1}`))
	f.Add([]byte(`{"id":1,"do":"remove","args":{"name":"d"}} x`))
	f.Add([]byte(`{"do":"save","files":-1}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		m, taken := &fake{}, 0
		take := func(n int) ([]*os.File, error) {
			if n < 0 || n > maxFiles {
				return nil, errors.New("too many")
			}
			taken = n
			var out []*os.File
			for range n {
				f, err := os.Open(os.DevNull)
				if err != nil {
					t.Fatal(err)
				}
				out = append(out, f)
			}
			return out, nil
		}
		a := answer(t.Context(), line, take, m)
		if a.Error != "" && len(m.told) > 0 || a.Error == "" && taken > maxFiles {
			t.Errorf("%q: %q and %q", line, a.Error, m.told)
		}
	})
}
