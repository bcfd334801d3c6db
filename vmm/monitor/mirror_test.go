package monitor

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cleave-project/cleave/vmm/control"
	"github.com/cleave-project/cleave/vmm/migrate"
	"github.com/cleave-project/cleave/vmm/virtio/blk"
	"github.com/cleave-project/cleave/vmm/virtio/virtiotest"
)

const mirrorSize = 8 << 20

// newMirrorDisk is a disk in a file as a monitor has it.
func newMirrorDisk(t *testing.T, content []byte) (*device, *mirror, string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "disk"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(mirrorSize); err != nil {
		t.Fatal(err)
	}
	d, err := newDisk(Disk{Disk: control.Disk{Name: "root"}, File: f}, "", func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.close)
	m, err := newMirror(d)
	if err != nil {
		t.Fatal(err)
	}
	return d, m, f.Name()
}

// mirrorGuest is one whose disks alone move.
type mirrorGuest struct {
	volumes []migrate.Volume
	freeze  func()
	thawed  bool
}

func (g *mirrorGuest) Description() ([]byte, error) { return []byte("{}"), nil }
func (g *mirrorGuest) Volumes() []migrate.Volume    { return g.volumes }
func (g *mirrorGuest) Throttle(int)                 {}
func (g *mirrorGuest) Freeze() ([]byte, error)      { g.freeze(); return []byte("{}"), nil }
func (g *mirrorGuest) Thaw() error                  { g.thawed = true; return nil }

type mirrorPlace []migrate.Sink

func (p mirrorPlace) Prepare([]byte, []migrate.Info) ([]migrate.Sink, error) { return p, nil }
func (mirrorPlace) Load([]byte) error                                        { return nil }
func (mirrorPlace) Run() error                                               { return nil }

// sendMirror moves a guest by a unix socket.
func sendMirror(t *testing.T, g *mirrorGuest, to migrate.Sink) error {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	received := make(chan error, 1)
	go func() { received <- migrate.Receive(t.Context(), l.(migrate.Listener), mirrorPlace{to}, nil) }()
	var conns []net.Conn
	for range 2 {
		c, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	_, err = migrate.Send(t.Context(), conns, g, migrate.Options{})
	return errors.Join(err, <-received)
}

// TestADiskIsMirroredWhileItIsWritten has a driver write, zero and discard
// while the disk is copied, with requests in flight at all times.
func TestADiskIsMirroredWhileItIsWritten(t *testing.T) {
	content := make([]byte, mirrorSize/2)
	for i := range content {
		content[i] = byte(i >> 9)
	}
	clear(content[1<<20 : 2<<20])
	from, source, path := newMirrorDisk(t, content)
	for name, garbage := range map[string][]byte{"to an empty disk": nil, "to a disk that was used": bytes.Repeat([]byte{0xee}, mirrorSize)} {
		t.Run(name, func(t *testing.T) {
			_, sink, copied := newMirrorDisk(t, garbage)
			if got, want := sink.Blank(), garbage == nil; got != want {
				t.Errorf("blank: %t", got)
			}
			guest := virtiotest.Plug(t, from.Device.Device)
			guest.Start(guest.Offered())
			stop, stopped := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(stopped)
				drive(guest.Queues[0], stop)
			}()
			err := sendMirror(t, &mirrorGuest{volumes: []migrate.Volume{source}, freeze: func() {
				close(stop)
				<-stopped
				guest.Reset() // returns when the disk is at rest
			}}, sink)
			if err != nil {
				t.Fatal(err)
			}
			same(t, path, copied)
		})
	}
}

// drive writes to random places until it is told to stop, eight requests at a
// time.
func drive(q *virtiotest.Queue, stop <-chan struct{}) {
	for n := byte(1); ; n++ {
		select {
		case <-stop:
			return
		default:
		}
		var batch []*virtiotest.Request
		for range 8 {
			header, data := make([]byte, 16), bytes.Repeat([]byte{n}, 512*(1+rand.IntN(16)))
			sector := uint64(rand.IntN(mirrorSize/512 - 16))
			switch rand.IntN(4) {
			case 0: // zero, or discard
				header[0], data = byte(11+2*rand.IntN(2)), make([]byte, 16)
				binary.LittleEndian.PutUint64(data, sector)
				binary.LittleEndian.PutUint32(data[8:], 16)
			default:
				header[0] = 1
				binary.LittleEndian.PutUint64(header[8:], sector)
			}
			r := q.Make([][]byte{header, data}, 1)
			q.Add(r)
			batch = append(batch, r)
		}
		q.Kick()
		for _, r := range batch {
			q.Wait(r)
			q.Free(r)
		}
		time.Sleep(time.Millisecond) // a guest that never rests would have to be throttled
	}
}

func same(t *testing.T, paths ...string) {
	t.Helper()
	var files [][]byte
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, b)
	}
	for at := 0; at < mirrorSize; at += 512 {
		if !bytes.Equal(files[0][at:at+512], files[1][at:at+512]) {
			t.Fatalf("sector %d differs", at/512)
		}
	}
}

func TestADiskThatGrowsKeepsTheGuest(t *testing.T) {
	d, source, _ := newMirrorDisk(t, nil)
	_, sink, _ := newMirrorDisk(t, nil)
	g := &mirrorGuest{volumes: []migrate.Volume{source}, freeze: func() {
		if err := d.resize(2 * mirrorSize); err != nil {
			t.Error(err)
		}
	}}
	if err := sendMirror(t, g, sink); err == nil || !strings.Contains(err.Error(), "another size") {
		t.Errorf("%v", err)
	}
	if !g.thawed {
		t.Error("the guest doesn't go on where it was")
	}
}

// TestBothSidesAgreeWhatIsMirrored has a source and a destination that were
// told different things.
func TestBothSidesAgreeWhatIsMirrored(t *testing.T) {
	info := func(names ...string) (out []migrate.Info) {
		for _, n := range names {
			out = append(out, migrate.Info{Name: n, Size: mirrorSize})
		}
		return out
	}
	disk := func(name string, mirrored bool) Disk { return Disk{Disk: control.Disk{Name: name}, Mirror: mirrored} }
	for name, c := range map[string]struct {
		here      []Disk
		announced []migrate.Info
		want      string
	}{
		"as they should":   {[]Disk{disk("root", true)}, info("root"), ""},
		"one is shared":    {[]Disk{disk("root", false)}, nil, ""},
		"it doesn't come":  {[]Disk{disk("root", true)}, nil, "awaits its content"},
		"it may not":       {[]Disk{disk("root", false)}, info("root"), "isn't to be written over"},
		"there is none":    {nil, info("root"), "no disk for"},
		"it comes twice":   {[]Disk{disk("root", true)}, info("root", "root"), "named twice"},
		"another comes":    {[]Disk{disk("root", true)}, info("data"), "awaits its content"},
		"it is no disk":    {nil, info("rng"), "no disk for"},
		"one more than is": {[]Disk{disk("root", true)}, info("root", "data"), "no disk for"},
	} {
		t.Run(name, func(t *testing.T) {
			m := &Monitor{config: Config{Disks: c.here}}
			m.devices = append(m.devices, &device{})
			m.devices[0].Name = "rng"
			for _, d := range c.here {
				dev, _, _ := newMirrorDisk(t, nil)
				dev.Name = d.Name
				m.devices = append(m.devices, dev)
			}
			sinks, err := m.awaited(c.announced)
			if c.want == "" {
				if err != nil || len(sinks) != len(c.announced) {
					t.Errorf("%d disks, %v", len(sinks), err)
				}
			} else if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v", err)
			}
		})
	}
}

var _ migrate.Sink = (*mirror)(nil)

var _ sparse = (*blk.File)(nil)
