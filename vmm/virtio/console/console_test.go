package console_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/vmm/virtio/console"
	"github.com/cleave-project/cleave/vmm/virtio/virtiotest"
)

func newDevice(t testing.TB, names ...string) *console.Device {
	t.Helper()
	d, err := console.New(names...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

// pair are two ends of a connection.
func pair(t testing.TB) (host, port *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends []*net.UnixConn
	for _, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		ends = append(ends, c.(*net.UnixConn))
	}
	return ends[0], ends[1]
}

// message is one from or to the driver.
type message struct {
	Port         uint32
	Event, Value uint16
	Name         string
}

const (
	ready, add, portReady, open, name = 0, 1, 3, 6, 7
)

// tell sends a message of the driver's.
func tell(g *virtiotest.Guest, port uint32, event, value uint16) {
	b := binary.LittleEndian.AppendUint32(nil, port)
	b = binary.LittleEndian.AppendUint16(b, event)
	g.Queues[3].Do([][]byte{binary.LittleEndian.AppendUint16(b, value)})
}

// hear waits for the next message to the driver.
func hear(g *virtiotest.Guest) message {
	r := g.Queues[2].Do(nil, 4096)
	b := r.Writable[0][:r.Written]
	le := binary.LittleEndian
	return message{le.Uint32(b), le.Uint16(b[4:]), le.Uint16(b[6:]), string(b[8:])}
}

// begin is what a driver does with a device of one port, whose host's end is
// as told.
func begin(t testing.TB, d *console.Device, connected uint16) *virtiotest.Guest {
	t.Helper()
	g := virtiotest.Plug(t, d)
	g.Start(g.Offered())
	tell(g, 0, ready, 1)
	hear(g)
	tell(g, 0, portReady, 1)
	hear(g)
	if m := hear(g); m != (message{0, open, connected, ""}) {
		t.Fatalf("message %+v", m)
	}
	tell(g, 0, open, 1)
	return g
}

func TestDriverHearsOfPorts(t *testing.T) {
	d := newDevice(t, "one", "org.example.two")
	g := virtiotest.Plug(t, d)
	g.Start(g.Offered())
	if n := g.Config(4, 4); n != 2 {
		t.Errorf("%d ports", n)
	}
	host, port := pair(t)
	tell(g, 0, ready, 1)
	got := []message{hear(g), hear(g)}
	tell(g, 1, portReady, 1)
	got = append(got, hear(g), hear(g))
	if err := d.Connect("org.example.two", port); err != nil {
		t.Fatal(err)
	}
	got = append(got, hear(g))
	host.Close()
	got = append(got, hear(g))
	want := []message{
		{0, add, 1, ""},
		{1, add, 1, ""},
		{1, name, 1, "org.example.two"},
		{1, open, 0, ""},
		{1, open, 1, ""},
		{1, open, 0, ""},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if err := d.Connect("three", port); err == nil {
		t.Error("a port that there isn't was connected")
	}
}

func TestBytesGoBothWays(t *testing.T) {
	d := newDevice(t, "one", "two")
	g := virtiotest.Plug(t, d)
	g.Start(g.Offered())
	host, port := pair(t)
	if err := d.Connect("two", port); err != nil {
		t.Fatal(err)
	}
	if _, err := host.Write([]byte("to the guest")); err != nil {
		t.Fatal(err)
	}
	in, out := g.Queues[4], g.Queues[5]
	short, rest := in.Make(nil, 3), in.Make(nil, 100)
	in.Add(short)
	in.Add(rest)
	in.Kick()
	out.Do([][]byte{[]byte("from "), nil, []byte("the guest")})
	got := make([]byte, 14)
	if _, err := io.ReadFull(host, got); err != nil || string(got) != "from the guest" {
		t.Errorf("%q, %v", got, err)
	}
	// Nothing before a program of the guest's has opened it.
	if in.Reap(); in.InFlight() != 2 {
		t.Error("the guest got what nobody reads")
	}
	tell(g, 1, open, 1)
	in.Wait(rest)
	if s := string(short.Writable[0]) + string(rest.Writable[0][:rest.Written]); s != "to the guest" {
		t.Errorf("%q", s)
	}
}

func TestWithoutAHostsEndWritesAreDropped(t *testing.T) {
	d := newDevice(t, "one")
	g := begin(t, d, 0)
	g.Queues[1].Do([][]byte{[]byte("lost")})
	host, port := pair(t)
	if err := d.Connect("one", port); err != nil {
		t.Fatal(err)
	}
	g.Queues[1].Do([][]byte{[]byte("heard")})
	got := make([]byte, 5)
	if _, err := io.ReadFull(host, got); err != nil || string(got) != "heard" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestLaterEndReplacesTheOneBefore(t *testing.T) {
	d := newDevice(t, "one")
	g := begin(t, d, 0)
	first, port := pair(t)
	if err := d.Connect("one", port); err != nil {
		t.Fatal(err)
	}
	second, port := pair(t)
	if err := d.Connect("one", port); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the first end: %v", err)
	}
	r := g.Queues[0].Make(nil, 10)
	g.Queues[0].Add(r)
	g.Queues[0].Kick()
	if _, err := second.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	g.Queues[0].Wait(r)
}

// blocked has the guest write until the host's end takes no more, and returns
// what it wrote.
func blocked(t *testing.T, g *virtiotest.Guest, port *net.UnixConn) (want []byte, requests []*virtiotest.Request) {
	t.Helper()
	if err := port.SetWriteBuffer(4096); err != nil {
		t.Fatal(err)
	}
	for i := range 8 {
		b := bytes.Repeat([]byte{byte('a' + i)}, 16<<10)
		want = append(want, b...)
		r := g.Queues[1].Make([][]byte{b[:1], b[1:]})
		g.Queues[1].Add(r)
		requests = append(requests, r)
	}
	g.Queues[1].Kick()
	return want, requests
}

func TestPauseWaitsForNoReader(t *testing.T) {
	d := newDevice(t, "one")
	g := begin(t, d, 0)
	host, port := pair(t)
	if err := d.Connect("one", port); err != nil {
		t.Fatal(err)
	}
	want, requests := blocked(t, g, port)
	got := make([]byte, len(want))
	at := 0
	for range 5 {
		g.Transport().Pause()
		g.Transport().Resume()
		n, err := io.ReadFull(host, got[at:at+1000])
		if err != nil {
			t.Fatal(err)
		}
		at += n
	}
	if _, err := io.ReadFull(host, got[at:]); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("what was written came otherwise")
	}
	g.Queues[1].Wait(requests[len(requests)-1])
}

func TestFlushSendsWhatIsLeft(t *testing.T) {
	d := newDevice(t, "one")
	g := begin(t, d, 0)
	host, port := pair(t)
	if err := d.Connect("one", port); err != nil {
		t.Fatal(err)
	}
	want, _ := blocked(t, g, port)
	got := make(chan []byte)
	go func() {
		b, _ := io.ReadAll(host)
		got <- b
	}()
	d.Flush(time.Minute)
	d.Close()
	if !bytes.Equal(<-got, want) {
		t.Error("what was written came otherwise")
	}
}

func TestFlushGivesUpWithoutAReader(t *testing.T) {
	d := newDevice(t, "one")
	g := begin(t, d, 0)
	_, port := pair(t)
	if err := d.Connect("one", port); err != nil {
		t.Fatal(err)
	}
	blocked(t, g, port)
	d.Flush(10 * time.Millisecond)
}

func TestMovedMachineHearsOfItsNewEnds(t *testing.T) {
	from := newDevice(t, "one")
	g := begin(t, from, 0)
	_, port := pair(t)
	if err := from.Connect("one", port); err != nil {
		t.Fatal(err)
	}
	hear(g)
	to := newDevice(t, "one")
	g.Move(to)
	if m := hear(g); m != (message{0, open, 0, ""}) {
		t.Errorf("message %+v", m)
	}
	host, port := pair(t)
	if err := to.Connect("one", port); err != nil {
		t.Fatal(err)
	}
	g.Queues[1].Do([][]byte{[]byte("on")})
	got := make([]byte, 2)
	if _, err := io.ReadFull(host, got); err != nil || string(got) != "on" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestDriverOfOldHasTheFirstPort(t *testing.T) {
	d := newDevice(t, "one", "two")
	g := virtiotest.Plug(t, d)
	g.Start(0, 2)
	host, port := pair(t)
	if err := d.Connect("one", port); err != nil {
		t.Fatal(err)
	}
	r := g.Queues[0].Make(nil, 10)
	g.Queues[0].Add(r)
	g.Queues[0].Kick()
	if _, err := host.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	g.Queues[0].Wait(r)
}

func TestResetForgetsTheDriver(t *testing.T) {
	d := newDevice(t, "one")
	g := begin(t, d, 0)
	g.Reset()
	host, port := pair(t)
	if err := d.Connect("one", port); err != nil {
		t.Fatal(err)
	}
	if _, err := host.Write([]byte("for whoever comes next")); err != nil {
		t.Fatal(err)
	}
	g.Start(g.Offered())
	tell(g, 0, ready, 1)
	got := []message{hear(g)}
	tell(g, 0, portReady, 1)
	got = append(got, hear(g), hear(g))
	if diff := cmp.Diff([]message{{0, add, 1, ""}, {0, name, 1, "one"}, {0, open, 1, ""}}, got); diff != "" {
		t.Error(diff)
	}
	tell(g, 0, open, 1)
	if r := g.Queues[0].Do(nil, 100); string(r.Writable[0][:r.Written]) != "for whoever comes next" {
		t.Errorf("%q", r.Writable[0][:r.Written])
	}
}

func TestStateThatCannotBeIsRefused(t *testing.T) {
	for _, s := range []string{"", "{}", `{"Version":1}`, `{"Version":2,"Ports":[{}]}`, `{"Version":1,"Ports":[{"Sent":-1}]}`} {
		if err := newDevice(t, "one").Restore([]byte(s)); err == nil {
			t.Errorf("%q was taken", s)
		}
	}
}

func FuzzDriver(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 0, 0, 1, 0}, []byte{0, 0, 0, 0, 3, 0, 1, 0})
	f.Add([]byte{1, 2, 3}, []byte{255, 255, 255, 255, 6, 0, 1, 0})
	f.Fuzz(func(t *testing.T, first, second []byte) {
		d := newDevice(t, "one", "two")
		g := virtiotest.Plug(t, d)
		g.Start(g.Offered())
		for range 3 {
			// Buffers of any size wait for whatever is answered.
			g.Queues[2].Add(g.Queues[2].Make(nil, 1+len(first)))
		}
		g.Queues[2].Kick()
		g.Queues[3].Do([][]byte{first}, 1+len(second))
		g.Queues[3].Do([][]byte{second[:len(second)/2], second[len(second)/2:]})
		s, err := d.Save()
		if err != nil {
			t.Fatal(err)
		}
		if err := newDevice(t, "one", "two").Restore(s); err != nil {
			t.Error(err)
		}
	})
}
