package monitor

import (
	"encoding/binary"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cleave-project/cleave/vmm"
	"github.com/cleave-project/cleave/vmm/control"
	"github.com/cleave-project/cleave/vmm/internal/tiny"
)

func TestADialerConnectsToWhatListensAtAPort(t *testing.T) {
	path := filepath.Join(t.TempDir(), "v")
	d, f, err := NewDialer(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	l, err := net.Listen("unix", path+"_7")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "port seven")
			c.Close()
		}
	}()
	conn, err := unixConn(f)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	a := &asker{conn: conn}
	for range 3 {
		if _, err := a.dial(8); err == nil {
			t.Error("somebody is at port 8")
		}
		c, err := a.dial(7)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(c); err != nil || string(b) != "port seven" {
			t.Errorf("%q, %v", b, err)
		}
		c.Close()
	}
}

func TestADialerEndsByItsClose(t *testing.T) {
	d, f, err := NewDialer("/nowhere")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := unixConn(f)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if _, err := (&asker{conn: conn}).dial(1); err == nil {
		t.Error("it goes on")
	}
}

// capacity is what a disk tells its guest: sectors.
func capacity(d *device) uint64 {
	b := make([]byte, 8)
	d.Device.ReadConfig(0, b)
	return binary.LittleEndian.Uint64(b)
}

// What a file is, is said: what is in it may be a guest's doing.
func TestADiskIsWhatItIsSaidToBe(t *testing.T) {
	image := filepath.Join(t.TempDir(), "image")
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip(err)
	}
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", image, "64M").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.Truncate(image, 1<<20); err != nil { // whole blocks, as a raw disk
		t.Fatal(err)
	}
	open := func() *os.File {
		f, err := os.OpenFile(image, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	st, err := os.Stat(image)
	if err != nil {
		t.Fatal(err)
	}
	for format, want := range map[string]uint64{
		"": uint64(st.Size()) / 512, control.FormatRaw: uint64(st.Size()) / 512, control.FormatQCOW2: 64 << 20 / 512,
	} {
		d, err := newDisk(Disk{Disk: control.Disk{Name: "d", Format: format}, File: open()}, "", func(error) {})
		if err != nil {
			t.Fatalf("%q: %v", format, err)
		}
		if got := capacity(d); got != want {
			t.Errorf("%q: %d sectors instead of %d", format, got, want)
		}
		if format == control.FormatQCOW2 && d.resize(1<<30) == nil {
			t.Error("an image was made larger as if it were raw")
		}
		d.close()
	}
	if _, err := newDisk(Disk{Disk: control.Disk{Name: "d", Format: "vmdk"}, File: open()}, "", func(error) {}); err == nil {
		t.Error("a format that there isn't is taken")
	}
	if _, err := newDisk(Disk{Disk: control.Disk{Name: "d", Format: control.FormatQCOW2}, File: backing(t, 1<<20)}, "", func(error) {}); err == nil {
		t.Error("an empty file is a qcow2 image")
	}
}

func TestASocketDeviceIsOneOfTheDevices(t *testing.T) {
	path := filepath.Join(t.TempDir(), "v")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.File()
	l.Close()
	if err != nil {
		t.Fatal(err)
	}
	dialer, dial, err := NewDialer(path)
	if err != nil {
		t.Fatal(err)
	}
	defer dialer.Close()
	d, err := newVsock(Vsock{CID: 5, Listener: f, Dial: dial})
	if err != nil {
		t.Fatal(err)
	}
	if got := capacity(d); got != 5 {
		t.Errorf("CID %d", got)
	}
	d.close()
	if _, err := newVsock(Vsock{CID: 2}); err == nil {
		t.Error("a guest has the host's CID")
	}
}

// The guest has no drivers: what it shall have is noted, and waited for in
// vain.
func TestMemoryIsSetWithinWhatThereMayBe(t *testing.T) {
	var c tiny.Code
	here := len(c)
	c.Jump(here)
	image := backing(t, 3<<20)
	r := run(t, Config{Kernel: kernel(t, c), MaxMemory: 64 << 20, Pmem: []Pmem{{"image", image}}})
	ctx := t.Context()
	s, err := r.Status(ctx)
	if err != nil || s.Memory != 16<<20 || s.Pluggable != 48<<20 || s.Plugged != 0 || !slices.Contains(s.Devices, "memory") || !slices.Contains(s.Devices, "image") {
		t.Errorf("%+v, %v", s, err)
	}
	for bytes, ok := range map[uint64]bool{0: false, 8 << 20: true, 64 << 20: true, 64<<20 + 1: false, 17<<20 + 5: true, 16 << 20: true} {
		if err := r.SetMemory(ctx, control.SetMemory{Bytes: bytes}); (err == nil) != ok {
			t.Errorf("%d bytes: %v", bytes, err)
		}
	}
	if err := r.SetMemory(ctx, control.SetMemory{Bytes: 32 << 20, Wait: time.Millisecond}); err == nil {
		t.Error("a guest without a driver has got memory")
	}
	if err := r.Reset(ctx); err != nil {
		t.Error(err)
	}
	// A stop may meet the moment in which there is no machine.
	for r.Stop(ctx) != nil {
		time.Sleep(time.Millisecond)
	}
	for {
		select {
		case end := <-r.ended:
			if end.Reason != vmm.Stopped {
				t.Errorf("ended by %+v", end)
			}
			return
		case <-time.After(10 * time.Millisecond):
			_ = r.Stop(ctx)
		}
	}
}

func TestWhatIsNoFileIsNoPersistentMemory(t *testing.T) {
	dev, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]*os.File{"a device": dev, "nothing": backing(t, 0)} {
		if _, err := mapped(f); err == nil {
			t.Errorf("%s is mapped", name)
		}
	}
}
