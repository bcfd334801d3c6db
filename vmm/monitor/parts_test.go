package monitor

import (
	"encoding/binary"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/cleave-project/cleave/vmm/control"
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
		d, err := newDisk(control.Disk{Name: "d", Format: format}, open())
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
	if _, err := newDisk(control.Disk{Name: "d", Format: "vmdk"}, open()); err == nil {
		t.Error("a format that there isn't is taken")
	}
	if _, err := newDisk(control.Disk{Name: "d", Format: control.FormatQCOW2}, backing(t, 1<<20)); err == nil {
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
