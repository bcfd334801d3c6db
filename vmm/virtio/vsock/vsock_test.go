package vsock_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/cleave-project/cleave/vmm/virtio"
	"github.com/cleave-project/cleave/vmm/virtio/virtiotest"
	"github.com/cleave-project/cleave/vmm/virtio/vsock"
)

const (
	cid        = 7
	headerSize = 44
	opRequest  = 1
	opResponse = 2
	opReset    = 3
	opShutdown = 4
	opData     = 5
	opUpdate   = 6
	opAsk      = 7
)

// packet is one of either side.
type packet struct {
	srcCID, dstCID uint64
	src, dst       uint32
	kind, op       uint16
	flags          uint32
	alloc, fwd     uint32
	length         int // said, if it isn't that of data
	data           []byte
}

func (p packet) bytes() []byte {
	le := binary.LittleEndian
	b := make([]byte, headerSize)
	le.PutUint64(b, p.srcCID)
	le.PutUint64(b[8:], p.dstCID)
	le.PutUint32(b[16:], p.src)
	le.PutUint32(b[20:], p.dst)
	le.PutUint32(b[24:], uint32(max(p.length, len(p.data))))
	le.PutUint16(b[28:], p.kind)
	le.PutUint16(b[30:], p.op)
	le.PutUint32(b[32:], p.flags)
	le.PutUint32(b[36:], p.alloc)
	le.PutUint32(b[40:], p.fwd)
	return append(b, p.data...)
}

func read(b []byte) packet {
	le := binary.LittleEndian
	return packet{
		srcCID: le.Uint64(b), dstCID: le.Uint64(b[8:]), src: le.Uint32(b[16:]), dst: le.Uint32(b[20:]), length: int(le.Uint32(b[24:])),
		kind: le.Uint16(b[28:]), op: le.Uint16(b[30:]), flags: le.Uint32(b[32:]), alloc: le.Uint32(b[36:]), fwd: le.Uint32(b[40:]),
		data: bytes.Clone(b[headerSize:]),
	}
}

// guest is a driver with its buffers.
type guest struct {
	*virtiotest.Guest
	t    testing.TB
	path string
	ring []*virtiotest.Request
	next int
}

func device(t testing.TB, path string) *vsock.Device {
	t.Helper()
	dial, l, err := vsock.Unix(path)
	if err != nil {
		t.Fatal(err)
	}
	d, err := vsock.New(vsock.Options{CID: cid, Dial: dial, Listener: l})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func plug(t testing.TB, buffers int) *guest {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	d := device(t, path)
	g := &guest{Guest: virtiotest.Plug(t, d), t: t, path: path}
	t.Cleanup(func() {
		g.Transport().Pause()
		d.Close()
	})
	g.Start(g.Offered() | virtio.FeatureEventIndex)
	for range buffers {
		r := g.Queues[0].Make(nil, headerSize+4096)
		g.ring = append(g.ring, r)
		g.Queues[0].Add(r)
	}
	g.Queues[0].Kick()
	return g
}

// send sends a packet to a port of the host.
func (g *guest) send(p packet) {
	g.t.Helper()
	if p.kind == 0 {
		p.kind = 1
	}
	if p.srcCID == 0 {
		p.srcCID, p.dstCID = cid, 2
	}
	if p.alloc == 0 {
		p.alloc = 1 << 20
	}
	b := p.bytes()
	g.Queues[1].Free(g.Queues[1].Do([][]byte{b[:headerSize], b[headerSize:]}))
}

// receive is the next packet of the device.
func (g *guest) receive() packet {
	g.t.Helper()
	r := g.ring[g.next%len(g.ring)]
	g.next++
	g.Queues[0].Wait(r)
	p := read(r.Writable[0][:r.Written])
	if p.srcCID != 2 || p.dstCID != cid || p.kind != 1 || p.length != len(p.data) {
		g.t.Errorf("a packet %+v", p)
	}
	g.Queues[0].Add(r)
	g.Queues[0].Kick()
	return p
}

func (g *guest) expect(op uint16) packet {
	g.t.Helper()
	p := g.receive()
	if p.op != op {
		g.t.Fatalf("a packet of kind %d instead of %d: %+v", p.op, op, p)
	}
	return p
}

// listen is a host's program at a port.
func (g *guest) listen(port int, serve func(net.Conn)) {
	g.t.Helper()
	l, err := net.Listen("unix", fmt.Sprintf("%s_%d", g.path, port))
	if err != nil {
		g.t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				serve(c)
			})
		}
	})
	g.t.Cleanup(func() {
		l.Close()
		g.Reset() // ends connections
		all.Wait()
	})
}

func echo(c net.Conn) { _, _ = io.Copy(c, c) }

func TestAGuestReachesTheHost(t *testing.T) {
	g := plug(t, 16)
	if g.Config(0, 8) != cid {
		t.Errorf("CID %d", g.Config(0, 8))
	}
	g.listen(80, echo)
	for round := range uint32(3) {
		me := packet{src: 1000 + round, dst: 80}
		g.send(packet{src: me.src, dst: 80, op: opRequest})
		if p := g.expect(opResponse); p.src != 80 || p.dst != me.src || p.alloc < 4096 {
			t.Fatalf("response %+v", p)
		}
		for i := range 5 {
			want := bytes.Repeat([]byte{byte(i)}, 1+i*1000)
			g.send(packet{src: me.src, dst: 80, op: opData, data: want})
			var got []byte
			for len(got) < len(want) {
				got = append(got, g.expect(opData).data...)
			}
			if !bytes.Equal(got, want) {
				t.Fatalf("%d bytes came back", len(got))
			}
		}
		g.send(packet{src: me.src, dst: 80, op: opShutdown, flags: 2}) // no more from here
		if p := g.expect(opShutdown); p.flags&2 == 0 {
			t.Errorf("the host doesn't end: %+v", p)
		}
		g.send(packet{src: me.src, dst: 80, op: opShutdown, flags: 3})
		for p := g.receive(); p.op != opReset; p = g.receive() {
			if p.op != opShutdown {
				t.Fatalf("after the end: %+v", p)
			}
		}
	}
}

func TestTheHostReachesAGuest(t *testing.T) {
	g := plug(t, 16)
	c, err := net.Dial("unix", g.path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "CONNECT 52\nearly"); err != nil {
		t.Fatal(err)
	}
	req := g.expect(opRequest)
	if req.dst != 52 || req.src < 1<<30 {
		t.Errorf("request %+v", req)
	}
	g.send(packet{src: 52, dst: req.src, op: opResponse})
	line := make([]byte, len(fmt.Sprintf("OK %d\n", req.src)))
	if _, err := io.ReadFull(c, line); err != nil || string(line) != fmt.Sprintf("OK %d\n", req.src) {
		t.Fatalf("answer %q, %v", line, err)
	}
	if p := g.expect(opData); string(p.data) != "early" {
		t.Errorf("data %q", p.data)
	}
	g.send(packet{src: 52, dst: req.src, op: opData, data: []byte("hello")})
	b := make([]byte, 5)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello" {
		t.Fatalf("%q, %v", b, err)
	}
	c.Close()
	if p := g.expect(opShutdown); p.flags != 3 {
		t.Errorf("a socket that is closed is told as %+v", p)
	}
	g.send(packet{src: 52, dst: req.src, op: opReset})
	// A guest that refuses, and lines that are none.
	for _, line := range []string{"CONNECT 53\n", "CONNECT x\n", "GET / HTTP/1.1\n\n", "CONNECT 99999999999\n", string(make([]byte, 100))} {
		c, err := net.Dial("unix", g.path)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, line)
		if line == "CONNECT 53\n" {
			g.send(packet{src: 53, dst: g.expect(opRequest).src, op: opReset})
		}
		if n, err := c.Read(b); n != 0 || err == nil {
			t.Errorf("%q is answered with %q", line, b[:n])
		}
		c.Close()
	}
}

func TestCreditIsKept(t *testing.T) {
	g := plug(t, 16)
	sent := bytes.Repeat([]byte("0123456789abcdef"), 40<<10) // 640 KiB
	got := make(chan []byte, 1)
	g.listen(1, func(c net.Conn) {
		var wrote sync.WaitGroup
		wrote.Go(func() { _, _ = c.Write(sent) })
		b := make([]byte, len(sent))
		_, _ = io.ReadFull(c, b)
		got <- b
		wrote.Wait()
	})
	const room = 10000
	g.send(packet{src: 9, dst: 1, op: opRequest, alloc: room})
	alloc := g.expect(opResponse).alloc
	var received []byte
	told := 0
	rest, inFlight, fwd := sent, uint32(0), uint32(0)
	for len(received) < len(sent) || len(rest) > 0 {
		// As much as the device has room for, then what it has.
		for n := min(len(rest), 4096, int(alloc-inFlight)); n > 0; n = min(len(rest), 4096, int(alloc-inFlight)) {
			g.send(packet{src: 9, dst: 1, op: opData, data: rest[:n], alloc: room, fwd: uint32(len(received))})
			told = len(received)
			rest, inFlight = rest[n:], inFlight+uint32(n)
		}
		p := g.receive()
		inFlight -= p.fwd - fwd
		fwd = p.fwd
		received = append(received, p.data...)
		if len(received)-told > room {
			t.Fatalf("%d bytes into room for %d", len(received)-told, room)
		}
		if p.op == opAsk || len(received)-told > room/2 {
			told = len(received)
			g.send(packet{src: 9, dst: 1, op: opUpdate, alloc: room, fwd: uint32(told)})
		}
	}
	if !bytes.Equal(received, sent) || !bytes.Equal(<-got, sent) {
		t.Error("data are others")
	}
}

func TestWhatIsForNobodyIsReset(t *testing.T) {
	g := plug(t, 16)
	g.listen(1, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	for name, p := range map[string]packet{
		"no such port":    {op: opRequest, dst: 2},
		"data for nobody": {op: opData, dst: 1, data: []byte("x")},
		"response":        {op: opResponse, dst: 1},
		"other type":      {op: opRequest, dst: 1, kind: 2},
		"other host":      {op: opRequest, dst: 1, srcCID: cid, dstCID: 99},
		"credit":          {op: opAsk, dst: 1},
	} {
		p.src = 77
		g.send(p)
		if r := g.expect(opReset); r.src != p.dst || r.dst != 77 {
			t.Errorf("%s: %+v", name, r)
		}
	}
	g.send(packet{op: opRequest, src: 5, dst: 1, srcCID: 3, dstCID: 2}) // another's name
	g.send(packet{op: opReset, src: 5, dst: 1})                         // is never answered
	for name, bad := range map[string]packet{
		"twice":    {op: opRequest},
		"unknown":  {op: 99},
		"response": {op: opResponse},
	} {
		g.send(packet{op: opRequest, src: 6, dst: 1})
		g.expect(opResponse)
		bad.src, bad.dst = 6, 1
		g.send(bad)
		if r := g.expect(opReset); r.dst != 6 {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

func TestAGuestThatSendsTooMuchIsReset(t *testing.T) {
	g := plug(t, 16)
	hold := make(chan struct{})
	g.listen(1, func(net.Conn) { <-hold })
	defer close(hold)
	g.send(packet{op: opRequest, src: 6, dst: 1})
	alloc := int(g.expect(opResponse).alloc)
	// The socket takes some, too.
	sndbuf := 4 << 20
	for sent := 0; sent < alloc+sndbuf; sent += 64 << 10 {
		g.send(packet{op: opData, src: 6, dst: 1, data: make([]byte, 64<<10)})
		for g.Queues[0].Reap(); g.Queues[0].InFlight() < len(g.ring); g.Queues[0].Reap() {
			if g.receive().op == opReset {
				return
			}
		}
	}
	t.Error("there is no end")
}

func TestPacketsThatLieStopTheDevice(t *testing.T) {
	g := plug(t, 16)
	for name, b := range map[string][]byte{
		"short":  make([]byte, 43),
		"length": packet{srcCID: cid, dstCID: 2, kind: 1, op: opData, length: 1 << 30}.bytes(),
	} {
		g.Start(0)
		g.Queues[1].Add(g.Queues[1].Make([][]byte{b}))
		g.Queues[1].Kick()
		g.Failed()
		_ = name
	}
	g.Start(0)
	g.Queues[0].Add(g.Queues[0].Make(nil, 20)) // no room for a header
	p := packet{srcCID: cid, dstCID: 2, kind: 1, op: opData}
	g.Queues[1].Add(g.Queues[1].Make([][]byte{p.bytes()}))
	g.Queues[1].Kick()
	g.Failed()
}

func TestWhatIsSentIsTakenWithoutRoomForAnswers(t *testing.T) {
	g := plug(t, 0)
	for i := range 500 { // far more than there are buffers in a queue
		g.send(packet{op: opData, src: uint32(i), dst: 1})
	}
	g.ring = nil
	for range 8 {
		r := g.Queues[0].Make(nil, headerSize+100)
		g.ring = append(g.ring, r)
		g.Queues[0].Add(r)
	}
	g.Queues[0].Kick()
	for i := range 500 {
		if p := g.expect(opReset); p.dst != uint32(i) {
			t.Fatalf("answer %d is %+v", i, p)
		}
	}
}

func TestConnectionsLiveThroughAPause(t *testing.T) {
	g := plug(t, 16)
	g.listen(1, echo)
	g.send(packet{op: opRequest, src: 6, dst: 1})
	g.expect(opResponse)
	fwd := 0
	for i := range 200 {
		want := bytes.Repeat([]byte{byte(i)}, 3000)
		r := g.Queues[1].Make([][]byte{packet{srcCID: cid, dstCID: 2, kind: 1, op: opData, src: 6, dst: 1, alloc: 1 << 20, fwd: uint32(fwd), data: want}.bytes()})
		g.Queues[1].Add(r)
		g.Queues[1].Kick()
		g.Transport().Pause()
		g.Transport().Resume()
		g.Queues[1].Wait(r)
		g.Queues[1].Free(r)
		var got []byte
		for len(got) < len(want) {
			if p := g.receive(); p.op == opData {
				got = append(got, p.data...)
			}
		}
		if fwd += len(got); !bytes.Equal(got, want) {
			t.Fatalf("round %d: %d bytes of others", i, len(got))
		}
	}
}

func TestARestoreEndsConnections(t *testing.T) {
	g := plug(t, 16)
	g.listen(1, echo)
	g.send(packet{op: opRequest, src: 6, dst: 1})
	g.expect(opResponse)
	path := filepath.Join(t.TempDir(), "s")
	d := device(t, path)
	defer func() {
		g.Transport().Detach()
		d.Close()
	}()
	g.Move(d)
	event := g.Queues[2].Do(nil, 4) // buffers may come later
	if event.Written != 4 || !bytes.Equal(event.Writable[0], make([]byte, 4)) {
		t.Errorf("event % x", event.Writable[0])
	}
	g.send(packet{op: opData, src: 6, dst: 1, data: []byte("x")})
	g.expect(opReset)
	again := g.Queues[2].Make(nil, 4)
	g.Queues[2].Add(again)
	g.Queues[2].Kick()
	g.send(packet{op: opData, src: 6, dst: 1, data: []byte("x")})
	g.expect(opReset)
	if g.Queues[2].Reap() != 0 {
		t.Error("the event comes twice")
	}
}

func TestAHostWithoutPortsRefuses(t *testing.T) {
	d, err := vsock.New(vsock.Options{CID: cid})
	if err != nil {
		t.Fatal(err)
	}
	g := &guest{Guest: virtiotest.Plug(t, d), t: t}
	g.Start(g.Offered())
	g.ring = []*virtiotest.Request{g.Queues[0].Make(nil, 100)}
	g.Queues[0].Add(g.ring[0])
	g.send(packet{op: opRequest, src: 1, dst: 1})
	g.expect(opReset)
}

func TestWhatCanNotBeIsRefused(t *testing.T) {
	for _, c := range []uint32{0, 1, 2, 0xffffffff} {
		if _, err := vsock.New(vsock.Options{CID: c}); err == nil {
			t.Errorf("CID %d is taken", c)
		}
	}
	d, err := vsock.New(vsock.Options{CID: 3})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, bad := range []string{"", "{}", `{"Version":3}`} {
		if d.Restore([]byte(bad)) == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// FuzzPackets has a guest send anything to a host that answers.
func FuzzPackets(f *testing.F) {
	f.Add(packet{op: opRequest, src: 1, dst: 1}.bytes(), packet{op: opData, src: 1, dst: 1, data: []byte("x")}.bytes())
	f.Add(packet{op: opRequest, src: 1, dst: 1, alloc: 1}.bytes(), packet{op: opShutdown, src: 1, dst: 1, flags: 3}.bytes())
	f.Fuzz(func(t *testing.T, a, b []byte) {
		d, err := vsock.New(vsock.Options{CID: cid, Dial: func(port uint32) (net.Conn, error) {
			if port != 1 {
				return nil, errors.New("nobody")
			}
			here, there := net.Pipe()
			go func() {
				defer there.Close()
				_ = there.SetDeadline(time.Now().Add(20 * time.Millisecond))
				_, _ = there.Write([]byte("hello"))
				_, _ = io.Copy(io.Discard, there)
			}()
			return here, nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		g := virtiotest.Plug(t, d)
		g.Start(g.Offered())
		g.Queues[0].Add(g.Queues[0].Make(nil, 200))
		g.Queues[0].Kick()
		for _, p := range [][]byte{a, b, a} {
			if len(p) >= headerSize {
				binary.LittleEndian.PutUint64(p, cid)
				binary.LittleEndian.PutUint64(p[8:], 2)
				binary.LittleEndian.PutUint16(p[28:], 1)
			}
			g.Queues[1].Add(g.Queues[1].Make([][]byte{p}))
			g.Queues[1].Kick()
		}
		g.Transport().Pause()
		g.Transport().Resume()
		g.Reset()
		d.Close()
	})
}

func BenchmarkEcho4K(b *testing.B) {
	g := plug(b, 64)
	g.listen(1, echo)
	g.send(packet{op: opRequest, src: 6, dst: 1})
	g.expect(opResponse)
	data := make([]byte, 4096)
	b.SetBytes(2 * 4096)
	fwd := 0
	for b.Loop() {
		g.send(packet{op: opData, src: 6, dst: 1, data: data, fwd: uint32(fwd)})
		for got := 0; got < len(data); {
			if p := g.receive(); p.op == opData {
				got += len(p.data)
				fwd += len(p.data)
			}
		}
	}
}
