package net_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/vmm/ratelimit"
	"github.com/cleave-project/cleave/vmm/virtio/net"
	"github.com/cleave-project/cleave/vmm/virtio/virtiotest"
)

const headerSize = 12

var mac = net.MAC{2, 0, 0, 0, 0, 1}

// wire is a tap in a network namespace of its own, and a socket on its other
// end.
type wire struct {
	t    testing.TB
	fds  []int
	peer *os.File
}

func newWire(t testing.TB, queues int) *wire {
	t.Helper()
	w, failed := &wire{t: t}, make(chan error)
	// The thread ends with the goroutine, and its namespace lives as long as
	// the descriptors.
	go func() {
		runtime.LockOSThread()
		failed <- w.open(queues)
	}()
	if err := <-failed; err != nil {
		t.Skipf("a tap in a network namespace of its own: %v", err)
	}
	t.Cleanup(func() { w.peer.Close() })
	return w
}

func (w *wire) open(queues int) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if queues > 1 {
		flags |= unix.IFF_MULTI_QUEUE
	}
	for range queues {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		ifr, err := unix.NewIfreq("t0")
		if err != nil {
			return err
		}
		ifr.SetUint16(flags)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
			return err
		}
		w.fds = append(w.fds, fd)
	}
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/t0/disable_ipv6", []byte("1"), 0)
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8
	s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all)
	if err != nil {
		return err
	}
	w.peer = os.NewFile(uintptr(s), "peer")
	up, err := unix.NewIfreq("t0")
	if err != nil {
		return err
	}
	up.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, up); err != nil {
		return err
	}
	ifr, err := unix.NewIfreq("t0")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(s, unix.SIOCGIFINDEX, ifr); err != nil {
		return err
	}
	if err := unix.Bind(s, &unix.SockaddrLinklayer{Protocol: all, Ifindex: int(ifr.Uint32())}); err != nil {
		return err
	}
	for _, o := range []int{unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
		if err := unix.SetsockoptInt(s, unix.SOL_SOCKET, o, 64<<20); err != nil {
			return err
		}
	}
	// Packets have a header here, too, of 10 bytes (packet(7)).
	if err := unix.SetsockoptInt(s, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
		return err
	}
	return nil
}

// taps are new taps on the wire's queues, as another process would have them.
func (w *wire) taps() (taps []*net.Tap) {
	w.t.Helper()
	for _, fd := range w.fds {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			w.t.Fatal(err)
		}
		tap, err := net.NewTap(dup)
		if err != nil {
			w.t.Fatal(err)
		}
		w.t.Cleanup(func() { tap.Close() })
		taps = append(taps, tap)
	}
	return taps
}

func (w *wire) device(o net.Options) *net.Device {
	w.t.Helper()
	o.MAC = mac
	d, err := net.New(w.taps(), o)
	if err != nil {
		w.t.Fatal(err)
	}
	return d
}

const peerHeader = 10

func (w *wire) send(header, packet []byte) {
	w.t.Helper()
	if header == nil {
		header = make([]byte, peerHeader)
	}
	if _, err := w.peer.Write(append(bytes.Clone(header), packet...)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *wire) receive() (header, packet []byte) {
	w.t.Helper()
	b := make([]byte, 70000)
	if err := w.peer.SetReadDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		w.t.Fatal(err)
	}
	n, err := w.peer.Read(b)
	if err != nil {
		w.t.Fatal(err)
	}
	return b[:peerHeader], b[peerHeader:n]
}

// silent says that nothing is on the wire.
func (w *wire) silent() bool {
	b := make([]byte, 100)
	_ = w.peer.SetReadDeadline(time.Unix(1, 0))
	_, err := w.peer.Read(b)
	return err != nil
}

// frame is an Ethernet frame with a number.
func frame(n, size int) []byte {
	b := make([]byte, size)
	copy(b, []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5}) // for experiments
	binary.LittleEndian.PutUint64(b[14:], uint64(n))
	for i := 22; i < size; i++ {
		b[i] = byte(i + n)
	}
	return b
}

func number(b []byte) int { return int(binary.LittleEndian.Uint64(b[14:])) }

// offer gives the device buffers to receive into.
func offer(q *virtiotest.Queue, n, size int) (rs []*virtiotest.Request) {
	for range n {
		r := q.Make(nil, size)
		q.Add(r)
		rs = append(rs, r)
	}
	q.Kick()
	return rs
}

func send(q *virtiotest.Queue, header, packet []byte) {
	if header == nil {
		header = make([]byte, headerSize)
	}
	q.Free(q.Do([][]byte{header, packet}))
}

func TestPacketsGoBothWays(t *testing.T) {
	for name, features := range map[string]uint64{"mergeable": net.FeatureMergeable, "plain": 0} {
		t.Run(name, func(t *testing.T) {
			w := newWire(t, 1)
			d := w.device(net.Options{})
			g := virtiotest.Plug(t, d)
			g.Start(features)
			for i := range 50 {
				want := frame(i, 60+i*28)
				send(g.Queues[1], nil, want)
				if _, got := w.receive(); !bytes.Equal(got, want) {
					t.Fatalf("packet %d of %d bytes became one of %d", i, len(want), len(got))
				}
				rs := offer(g.Queues[0], 1, 2048)
				w.send(nil, want)
				g.Queues[0].Wait(rs[0])
				got := rs[0].Writable[0]
				if int(rs[0].Written) != headerSize+len(want) || !bytes.Equal(got[headerSize:rs[0].Written], want) || got[10] != 1 {
					t.Fatalf("packet %d of %d bytes became one of %d, header % x", i, len(want), rs[0].Written, got[:headerSize])
				}
			}
			if m := d.Metrics(); m.Sent.Packets != 50 || m.Received.Packets != 50 || m.Received.Bytes != m.Sent.Bytes || m.Sent.Dropped+m.Received.Dropped != 0 {
				t.Errorf("metrics %+v", m)
			}
		})
	}
}

// tcp is a segment of TCP over IPv4 of size bytes, and the header that has
// the kernel cut it into pieces of 1448.
func tcp(size, header int) (h, packet []byte) {
	packet = frame(0, size)
	be := binary.BigEndian
	be.PutUint16(packet[12:], 0x0800)
	ip := packet[14:34]
	copy(ip, []byte{0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2})
	be.PutUint16(ip[2:], uint16(size-14))
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(be.Uint16(ip[i:]))
	}
	be.PutUint16(ip[10:], ^uint16(sum+sum>>16))
	packet[34+12] = 5 << 4 // length of the header
	h = make([]byte, header)
	le := binary.LittleEndian
	h[0], h[1] = 1, 1
	le.PutUint16(h[2:], 54)
	le.PutUint16(h[4:], 1448)
	le.PutUint16(h[6:], 34)
	le.PutUint16(h[8:], 16)
	return h, packet
}

func TestLargeSegmentsGoBothWays(t *testing.T) {
	w := newWire(t, 1)
	g := virtiotest.Plug(t, w.device(net.Options{}))
	g.Start(g.Offered())
	h, packet := tcp(60000, headerSize)
	g.Queues[1].Indirect = true
	send(g.Queues[1], h, packet)
	got, p := w.receive()
	if !bytes.Equal(p, packet) || !bytes.Equal(got[:2], h[:2]) || !bytes.Equal(got[4:6], h[4:6]) {
		t.Fatalf("%d bytes became %d, header % x", len(packet), len(p), got)
	}
	for _, buffers := range []int{60, 40} { // the fewer don't have room for any packet, but for this
		rs := offer(g.Queues[0], buffers, 1536)
		w.send(h[:peerHeader], packet)
		g.Queues[0].Wait(rs[0])
		first := rs[0].Writable[0]
		n := int(binary.LittleEndian.Uint16(first[10:]))
		if want := (headerSize + len(packet) + 1535) / 1536; n != want || first[1] != 1 {
			t.Fatalf("%d buffers for what needs %d, header % x", n, want, first[:headerSize])
		}
		var all []byte
		for _, r := range rs[:n] {
			g.Queues[0].Wait(r)
			all = append(all, r.Writable[0][:r.Written]...)
		}
		if !bytes.Equal(all[headerSize:], packet) {
			t.Fatal("the guest gets another packet")
		}
		g.Start(g.Offered())
	}
}

func TestAPacketWaitsForRoom(t *testing.T) {
	w := newWire(t, 1)
	d := w.device(net.Options{})
	g := virtiotest.Plug(t, d)
	g.Start(net.FeatureMergeable)
	rs := offer(g.Queues[0], 1, 256)
	want := frame(1, 1400)
	w.send(nil, want)
	rs = append(rs, offer(g.Queues[0], 8, 256)...)
	var all []byte
	for len(all) < headerSize+len(want) {
		g.Queues[0].Wait(rs[0])
		all = append(all, rs[0].Writable[0][:rs[0].Written]...)
		rs = rs[1:]
	}
	if !bytes.Equal(all[headerSize:], want) {
		t.Error("another packet")
	}
	// Without mergeable buffers, what is too large is lost, and no more.
	g.Start(0)
	rs = offer(g.Queues[0], 1, 256)
	w.send(nil, want)
	w.send(nil, frame(2, 100))
	g.Queues[0].Wait(rs[0])
	if number(rs[0].Writable[0][headerSize:]) != 2 || d.Metrics().Received.Dropped != 1 {
		t.Errorf("packet %d, metrics %+v", number(rs[0].Writable[0][headerSize:]), d.Metrics())
	}
}

func TestHeadersThatLieAreDropped(t *testing.T) {
	w := newWire(t, 1)
	d := w.device(net.Options{})
	g := virtiotest.Plug(t, d)
	good, packet := tcp(3000, headerSize)
	change := func(at int, b ...byte) []byte {
		h := bytes.Clone(good)
		copy(h[at:], b)
		return h
	}
	cases := map[string][]byte{
		"unknown type":       change(1, 9),
		"checksum outside":   change(6, 0xff, 0xff),
		"checksum at end":    change(6, 0xb6, 0x0b), // 2998, and 16 more
		"no size":            change(4, 0, 0),
		"no checksum":        change(0, 0),
		"header too long":    change(2, 0xff, 0xff),
		"congestion alone":   change(1, 0x80),
		"only half a header": good[:6],
	}
	g.Start(g.Offered())
	dropped := uint64(0)
	for name, h := range cases {
		p := packet
		if len(h) < headerSize {
			p = nil
		}
		q := g.Queues[1]
		if p == nil {
			q.Do([][]byte{h})
		} else {
			send(q, h, p)
		}
		if dropped++; d.Metrics().Sent.Dropped != dropped {
			t.Errorf("%s: %+v", name, d.Metrics().Sent)
			dropped = d.Metrics().Sent.Dropped
		}
	}
	send(g.Queues[1], nil, make([]byte, 13))
	send(g.Queues[1], nil, make([]byte, 66000))
	if !w.silent() || d.Metrics().Sent.Dropped != dropped+2 {
		t.Errorf("something is on the wire, or not dropped: %+v", d.Metrics().Sent)
	}
	g.Start(0) // what wasn't negotiated can't be used
	send(g.Queues[1], good, packet)
	if !w.silent() {
		t.Error("a large segment without the feature")
	}
}

func command(q *virtiotest.Queue, class, cmd byte, data ...byte) byte {
	r := q.Do([][]byte{{class, cmd}, data}, 1)
	defer q.Free(r)
	return r.Writable[0][0]
}

func TestCommands(t *testing.T) {
	w := newWire(t, 2)
	d := w.device(net.Options{MTU: 9000})
	g := virtiotest.Plug(t, d)
	g.Start(g.Offered())
	q := g.Queues[4]
	table := []byte{1, 0, 0, 0, 2, 0, 0, 0, 0, 9, 0, 0, 0, 0}
	for name, c := range map[string]struct {
		class, cmd byte
		data       []byte
		want       byte
	}{
		"promiscuous":         {0, 0, []byte{1}, 0},
		"no broadcasts":       {0, 5, []byte{1}, 0},
		"unknown mode":        {0, 6, []byte{1}, 1},
		"mode without value":  {0, 0, nil, 1},
		"addresses":           {1, 0, table, 0},
		"too few addresses":   {1, 0, table[:9], 1},
		"too many addresses":  {1, 0, append(bytes.Clone(table), 1), 1},
		"endless addresses":   {1, 0, []byte{255, 255, 255, 255, 0, 0, 0, 0}, 1},
		"vlans":               {2, 0, []byte{1, 0}, 1},
		"no pair":             {4, 0, []byte{0, 0}, 1},
		"too many pairs":      {4, 0, []byte{3, 0}, 1},
		"offloads":            {5, 0, []byte{2, 0, 0, 0, 0, 0, 0, 0}, 0},
		"offloads not there":  {5, 0, []byte{0, 0, 0, 0x80, 0, 0, 0, 0}, 1},
		"something":           {9, 9, nil, 1},
		"half an address":     {1, 1, []byte{1, 2, 3}, 1},
		"announcement":        {3, 0, nil, 0},
		"half of the offload": {5, 0, []byte{1, 0}, 1},
	} {
		if got := command(q, c.class, c.cmd, c.data...); got != c.want {
			t.Errorf("%s: answer %d", name, got)
		}
	}
	if got := g.Config(0, 8) >> 0; got&0xffffffffffff != 0x010000000002 || got>>48 != 1 {
		t.Errorf("configuration %#x", got)
	}
	if pairs, mtu := g.Config(8, 2), g.Config(10, 2); pairs != 2 || mtu != 9000 {
		t.Errorf("%d pairs, MTU %d", pairs, mtu)
	}
	if command(q, 1, 1, 2, 9, 9, 9, 9, 9) != 0 || command(q, 4, 0, 2, 0) != 0 {
		t.Error("commands fail")
	}
	g.Move(w.device(net.Options{MTU: 9000}))
	g.ConfigChanged()
	if got := g.Config(0, 8); got != 3<<48|0x090909090902 {
		t.Errorf("after a move, configuration %#x: address, link and a wish to be announced", got)
	}
	if command(q, 3, 0) != 0 || g.Config(6, 2) != 1 {
		t.Error("the guest has announced itself, and is asked again")
	}
	g.Start(0)
	if got := g.Config(0, 8); got != 1<<48|0x010000000002 {
		t.Errorf("after a reset, configuration %#x", got)
	}
}

func TestBothPairsReceive(t *testing.T) {
	w := newWire(t, 2)
	g := virtiotest.Plug(t, w.device(net.Options{}))
	g.Start(g.Offered())
	if command(g.Queues[4], 4, 0, 2, 0) != 0 {
		t.Fatal("two pairs are refused")
	}
	const packets = 64
	rs := append(offer(g.Queues[0], packets, 70000/32), offer(g.Queues[2], packets, 70000/32)...)
	// The kernel chooses queues by flow, and remembers where one was sent from.
	for i := range packets {
		h, p := tcp(100, peerHeader)
		clear(h)
		binary.BigEndian.PutUint16(p[34:], uint16(1000+i))
		w.send(h, p)
		send(g.Queues[1+2*(i%2)], nil, frame(i, 100))
	}
	for range packets {
		w.receive()
	}
	got := 0
	for deadline := time.Now().Add(2 * time.Minute); got < packets; {
		got += g.Queues[0].Reap() + g.Queues[2].Reap()
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d packets", got, packets)
		}
		time.Sleep(time.Millisecond)
	}
	used := 0
	for _, r := range rs {
		if r.Written > 0 {
			used++
		}
	}
	if used != packets {
		t.Errorf("%d buffers for %d packets", used, packets)
	}
}

func TestWithoutALinkNothingPasses(t *testing.T) {
	w := newWire(t, 1)
	d := w.device(net.Options{})
	g := virtiotest.Plug(t, d)
	g.Start(g.Offered())
	d.SetLink(false)
	g.ConfigChanged()
	if g.Config(6, 2) != 0 {
		t.Error("the guest sees a link")
	}
	send(g.Queues[1], nil, frame(1, 100))
	if !w.silent() || d.Metrics().Sent.Dropped != 1 {
		t.Errorf("a packet passed: %+v", d.Metrics())
	}
	rs := offer(g.Queues[0], 1, 2048)
	w.send(nil, frame(2, 100))
	for d.Metrics().Received.Dropped == 0 {
		time.Sleep(time.Millisecond)
	}
	d.SetLink(true)
	g.ConfigChanged()
	w.send(nil, frame(3, 100))
	g.Queues[0].Wait(rs[0])
	if n := number(rs[0].Writable[0][headerSize:]); n != 3 {
		t.Errorf("packet %d passed", n)
	}
}

func TestLimitsHold(t *testing.T) {
	w := newWire(t, 1)
	fifty := func() *ratelimit.Limiter {
		return ratelimit.New(ratelimit.Limits{Operations: ratelimit.Rate{PerSecond: 50, Burst: 1}})
	}
	g := virtiotest.Plug(t, w.device(net.Options{Receive: fifty(), Send: fifty()}))
	g.Start(g.Offered())
	began := time.Now()
	for i := range 11 {
		send(g.Queues[1], nil, frame(i, 100))
	}
	sent := time.Since(began)
	rs := offer(g.Queues[0], 60, 2048)
	began = time.Now()
	for i := range 12 {
		w.send(nil, frame(i, 100))
	}
	for _, r := range rs[:12] {
		g.Queues[0].Wait(r)
	}
	if received := time.Since(began); sent < 190*time.Millisecond || received < 190*time.Millisecond {
		t.Errorf("11 packets at 50 a second: sent in %v, received in %v", sent, received)
	}
}

// TestMovesLoseNoPacket sends numbers both ways while the device is paused,
// saved and restored in others on the same tap.
func TestMovesLoseNoPacket(t *testing.T) {
	const packets, moves = 600, 10
	w := newWire(t, 1)
	g := virtiotest.Plug(t, w.device(net.Options{}))
	g.Start(g.Offered())
	var all sync.WaitGroup
	failed := make(chan string, 2)
	all.Go(func() { // to the guest, never more than its buffers and the tap's queue hold
		q := g.Queues[0]
		ring := offer(q, 128, 2048)
		for i := range packets {
			w.send(nil, frame(i, 60+i%1400))
			r := ring[i%len(ring)]
			q.Wait(r)
			if got := number(r.Writable[0][headerSize:]); got != i {
				failed <- fmt.Sprintf("the guest got packet %d instead of %d", got, i)
				return
			}
			q.Add(r)
			q.Kick()
		}
	})
	all.Go(func() {
		for i := range packets {
			send(g.Queues[1], nil, frame(i, 60+i%1400))
		}
	})
	for range moves {
		g.Move(w.device(net.Options{}))
		time.Sleep(2 * time.Millisecond) // some packets between moves
	}
	all.Wait()
	close(failed)
	for f := range failed {
		t.Error(f)
	}
	for i := range packets {
		if _, p := w.receive(); number(p) != i {
			t.Fatalf("packet %d instead of %d is on the wire", number(p), i)
		}
	}
	if !w.silent() {
		t.Error("more packets than were sent")
	}
}

func TestWhatIsNoTapIsRefused(t *testing.T) {
	w := newWire(t, 1)
	fd, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := net.NewTap(fd); err == nil {
		t.Error("/dev/null is a tap")
	}
	for name, o := range map[string]net.Options{"no address": {}, "a group's": {MAC: net.MAC{1, 2, 3, 4, 5, 6}}, "MTU": {MAC: mac, MTU: 10}} {
		if _, err := net.New(w.taps(), o); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	d := w.device(net.Options{})
	for _, bad := range []string{"", "{}", `{"Version":1}`, `{"Version":1,"Pairs":2}`, `{"Version":1,"Pairs":-1}`, `{"Version":9,"Pairs":1}`} {
		if d.Restore([]byte(bad)) == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func FuzzPacket(f *testing.F) {
	h, packet := tcp(200, headerSize)
	f.Add(append(h, packet...), byte(12))
	f.Add(make([]byte, 26), byte(3))
	w := newWire(f, 1)
	d := w.device(net.Options{})
	f.Fuzz(func(t *testing.T, b []byte, cut byte) {
		g := virtiotest.Plug(t, d)
		g.Start(g.Offered())
		at := min(int(cut), len(b))
		g.Queues[1].Do([][]byte{b[:at], b[at:]})
		for !w.silent() {
		}
	})
}

func FuzzCommand(f *testing.F) {
	f.Add([]byte{1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 9, 0, 0, 0, 0})
	f.Add([]byte{4, 0, 2, 0})
	w := newWire(f, 2)
	d := w.device(net.Options{})
	f.Fuzz(func(t *testing.T, b []byte) {
		g := virtiotest.Plug(t, d)
		g.Start(g.Offered())
		at := min(3, len(b))
		r := g.Queues[4].Make([][]byte{b[:at], b[at:]}, 1)
		g.Queues[4].Add(r)
		g.Queues[4].Kick()
		if len(b) < 2 {
			g.Failed()
			return
		}
		g.Queues[4].Wait(r)
	})
}

// BenchmarkSend has the guest send small packets, which are dropped behind the
// tap.
func BenchmarkSend(b *testing.B) {
	w := newWire(b, 1)
	g := virtiotest.Plug(b, w.device(net.Options{}))
	g.Start(g.Offered())
	w.peer.Close()
	q := g.Queues[1]
	ring := make([]*virtiotest.Request, 64)
	for i := range ring {
		ring[i] = q.Make([][]byte{make([]byte, headerSize), frame(i, 64)})
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		r := ring[i%len(ring)]
		if i >= len(ring) {
			q.Wait(r)
		}
		q.Add(r)
		q.Kick()
		i++
	}
}

// BenchmarkReceive has the guest receive large segments.
func BenchmarkReceive(b *testing.B) {
	w := newWire(b, 1)
	g := virtiotest.Plug(b, w.device(net.Options{}))
	g.Start(g.Offered())
	q := g.Queues[0]
	ring := offer(q, 192, 2048)
	h, packet := tcp(60000, peerHeader)
	b.SetBytes(int64(len(packet)))
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		w.send(h, packet)
		for range (headerSize + len(packet) + 2047) / 2048 {
			r := ring[i%len(ring)]
			q.Wait(r)
			q.Add(r)
			i++
		}
		q.Kick()
	}
}
