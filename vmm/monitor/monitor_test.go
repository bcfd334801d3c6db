package monitor

import (
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cleave-project/cleave/vmm"
	"github.com/cleave-project/cleave/vmm/control"
	"github.com/cleave-project/cleave/vmm/internal/tiny"
	"github.com/cleave-project/cleave/vmm/kvm"
)

func host(t *testing.T) *kvm.System {
	t.Helper()
	s, err := kvm.Open()
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		t.Skipf("no KVM: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func backing(t *testing.T, size int64) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f
}

// kernel is a program's file.
func kernel(t *testing.T, c tiny.Code) *os.File {
	t.Helper()
	l, f := c.Kernel(), backing(t, 0)
	if _, err := io.Copy(f, io.NewSectionReader(l.Kernel, 0, l.Size)); err != nil {
		t.Fatal(err)
	}
	return f
}

// Ports and places of a machine that these guests know.
const (
	serial  = 0x3f8
	reset   = 0x604
	slots   = 0x610
	scratch = 0x200000
)

// running is a monitor with its socket.
type running struct {
	*control.Client
	said  chan byte
	ended chan vmm.End
}

func (r *running) Write(p []byte) (int, error) {
	for _, b := range p {
		r.said <- b
	}
	return len(p), nil
}

func (r *running) wait(t *testing.T, want byte) {
	t.Helper()
	select {
	case b := <-r.said:
		if b != want {
			t.Fatalf("the guest says %d instead of %d", b, want)
		}
	case <-time.After(time.Minute):
		t.Fatal("the guest says nothing")
	}
}

func run(t *testing.T, c Config) *running {
	t.Helper()
	r := &running{said: make(chan byte, 100), ended: make(chan vmm.End, 1)}
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	c.CPUs, c.Memory, c.Console, c.Control = 1, 16<<20, r, l
	m, err := New(host(t), c)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		end, err := m.Run(t.Context())
		if err != nil {
			t.Error(err)
		}
		r.ended <- end
	}()
	if r.Client, err = control.Dial(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func TestAGuestThatResetsStartsAnew(t *testing.T) {
	var c tiny.Code
	c.Out8(serial, 1)
	c.Out8(reset, 1)
	r := run(t, Config{Kernel: kernel(t, c), Disks: []Disk{{Disk: control.Disk{Name: "d"}, File: backing(t, 1<<20)}}})
	for range 3 {
		r.wait(t, 1)
	}
	s, err := r.Status(t.Context())
	if err != nil || s.Resets < 2 || len(s.Devices) != 3 {
		t.Errorf("%+v, %v", s, err)
	}
	go func() {
		for range r.said {
		}
	}()
	// A stop may meet the moment in which there is no machine, or one that
	// has ended.
	for {
		_ = r.Stop(t.Context())
		select {
		case end := <-r.ended:
			if end.Reason != vmm.Stopped {
				t.Errorf("ended by %+v", end)
			}
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func TestRequestsReachTheMachine(t *testing.T) {
	var c tiny.Code
	c.Out8(serial, 1)
	for _, s := range []uint32{1 << 4, 1 << 5} { // two devices come, behind rng, balloon and disk
		here := len(c)
		c.In32(slots, scratch)
		c.Until(scratch, s, here)
		c.Out8(serial, 2)
	}
	here := len(c)
	c.In32(slots+4, scratch)
	c.Until(scratch, 1<<4, here)
	c.Out32(slots+8, 1<<4)
	c.Out8(serial, 3)
	here = len(c)
	c.Jump(here)
	r := run(t, Config{Kernel: kernel(t, c), Disks: []Disk{{Disk: control.Disk{Name: "d"}, File: backing(t, 1<<20)}}})
	ctx := t.Context()
	r.wait(t, 1)
	for _, name := range []string{"e", "f"} {
		if err := r.AddDisk(ctx, control.Disk{Name: name}, backing(t, 1<<20), nil); err != nil {
			t.Fatal(err)
		}
		r.wait(t, 2)
	}
	if r.AddDisk(ctx, control.Disk{Name: "f"}, backing(t, 1<<20), nil) == nil {
		t.Error("two disks of one name")
	}
	if r.AddNet(ctx, control.Net{Name: "n"}, []*os.File{backing(t, 0)}) == nil {
		t.Error("a file is taken for a tap")
	}
	if err := r.Remove(ctx, control.Remove{Name: "e"}); err != nil {
		t.Fatal(err)
	}
	r.wait(t, 3)
	if err := r.Remove(ctx, control.Remove{Name: "f", Timeout: 1}); err == nil {
		t.Error("a device has left that the guest didn't let go of")
	}
	for _, err := range []error{
		r.SetLimits(ctx, control.SetLimits{Name: "d", Limits: control.Limits{BytesPerSecond: 5}}),
		r.SetMemory(ctx, control.SetMemory{Bytes: 8 << 20}), r.Pause(ctx), r.Save(ctx, control.Save{}, backing(t, 0), backing(t, 0)),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if r.SetLimits(ctx, control.SetLimits{Name: "rng"}) == nil || r.SetMemory(ctx, control.SetMemory{Bytes: 1 << 40}) == nil {
		t.Error("what can't be set is set")
	}
	s, err := r.Status(ctx)
	if err != nil || s.State != "paused" || !slices.Equal(s.Devices, []string{"rng", "balloon", "d", "f"}) {
		t.Errorf("%+v, %v", s, err)
	}
	m, err := r.Metrics(ctx)
	if err != nil || m.Devices["d"] == nil || m.Devices["e"] != nil {
		t.Errorf("%s, %v", m.Devices, err)
	}
	_ = r.Stop(ctx)
	if end := <-r.ended; end.Reason != vmm.Stopped {
		t.Errorf("ended by %+v", end)
	}
}
