package link

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	mrand "math/rand/v2"
	"net"
	"os"
	"testing"
	"time"
)

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// mustDial opens a session and a connection in it.
func mustDial(t testing.TB, ch *end) net.Conn {
	t.Helper()
	return mustConnect(t, mustOpen(t, ch))
}

func mustOpen(t testing.TB, ch io.ReadWriteCloser) *Session {
	t.Helper()
	s, err := NewSession(within(t), ch)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func mustConnect(t testing.TB, s *Session) net.Conn {
	t.Helper()
	c, err := s.Open(within(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func mustAccept(t testing.TB, l net.Listener) net.Conn {
	t.Helper()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// echo answers every connection with what it sends.
func echo(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			io.Copy(c, c)
			c.Close()
		}()
	}
}

// echoes checks that a connection works: n bytes come back.
func echoes(t testing.TB, c net.Conn, n int) {
	t.Helper()
	sent := make([]byte, n)
	rand.Read(sent)
	go c.Write(sent)
	got := make([]byte, n)
	c.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := io.ReadFull(c, got); err != nil {
		t.Fatal(err)
	}
	if sha256.Sum256(got) != sha256.Sum256(sent) {
		t.Fatal("something else came back")
	}
}

func TestBytesComeBackWhole(t *testing.T) {
	line := newLine(t)
	l := Listen(line.guest())
	t.Cleanup(func() { l.Close() })
	go echo(l)
	c := mustDial(t, line.host())
	for _, n := range []int{1, 253, 254, 255, 256, maxPayload, maxPayload + 1, window, 3 * window} {
		echoes(t, c, n)
	}
}

func TestHostMayDialBeforeTheGuestListens(t *testing.T) {
	line := newLine(t)
	go func() {
		time.Sleep(50 * time.Millisecond)
		go echo(Listen(line.guest()))
	}()
	echoes(t, mustDial(t, line.host()), 1000)
}

// A terminal line echoes what comes before the guest has made it raw.
func TestEchoIsNobody(t *testing.T) {
	line := newLine(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	loop := &end{in: line.toGuest, out: line.toGuest}
	if _, err := NewSession(ctx, loop); err == nil {
		t.Fatal("dialed itself")
	}
}

// A host that was killed has left a frame cut at any byte, or has not read
// what the guest sent it.
func TestNextHostIsUnderstoodWhereverTheLastOneWasCut(t *testing.T) {
	line := newLine(t)
	l := Listen(line.guest())
	t.Cleanup(func() { l.Close() })
	go echo(l)
	var enc encoder
	f := enc.append(nil, frame{kind: data, session: 7, payload: []byte("half of this\x00is lost")})
	for cut := range len(f) {
		h := line.host()
		mustDial(t, h)
		h.Close() // the process is gone
		line.toGuest.Write(f[:cut])
		line.toHost.Write(f[cut/2 : cut])
		h = line.host()
		echoes(t, mustDial(t, h), 100)
		h.Close()
	}
}

func TestGarbageBetweenConnectionsIsPassedBy(t *testing.T) {
	line := newLine(t)
	l := Listen(line.guest())
	t.Cleanup(func() { l.Close() })
	go echo(l)
	r := mrand.New(mrand.NewPCG(1, 2))
	for range 30 {
		garbage := make([]byte, r.IntN(2*maxStuffed))
		for i := range garbage {
			garbage[i] = byte(r.Uint32())
			if r.IntN(2) == 0 && garbage[i] == 0 {
				garbage[i] = 1 // long frames as well
			}
		}
		line.toGuest.leave(garbage)
		line.toHost.leave(garbage)
		h := line.host()
		echoes(t, mustDial(t, h), 5000)
		h.Close()
	}
}

// What is lost or changed on the way must never be taken for what was sent.
func TestDamageEndsTheConnection(t *testing.T) {
	const size = 300 << 10
	for seed := range uint64(60) {
		line := newLine(t)
		l := Listen(line.guest())
		c := mustDial(t, line.host())
		c.Write([]byte{1})
		g := mustAccept(t, l)
		g.Read(make([]byte, 1))
		r := mrand.New(mrand.NewPCG(seed, 3))
		at := r.IntN(size)
		line.toGuest.mu.Lock()
		line.toGuest.spoil = func(p []byte) []byte {
			if at -= len(p); at >= 0 || len(p) == 0 {
				return p
			}
			at = size * 10
			i := r.IntN(len(p))
			switch seed % 4 {
			case 0: // a bit
				p[i] ^= 1 << r.IntN(8)
			case 1: // a part
				p = append(p[:i], p[min(len(p), i+1+r.IntN(5000)):]...)
			case 2: // the rest
				p = p[:i]
			case 3: // something more
				p = append(p[:i:i], append(bytes.Repeat([]byte{byte(r.Uint32())}, 1+r.IntN(300)), p[i:]...)...)
			}
			return p
		}
		line.toGuest.mu.Unlock()
		sent := make([]byte, size)
		rand.Read(sent)
		go func() {
			c.SetWriteDeadline(time.Now().Add(5 * time.Second))
			c.Write(sent)
			c.Close()
		}()
		g.SetReadDeadline(time.Now().Add(time.Minute))
		got, err := io.ReadAll(g)
		if !bytes.HasPrefix(sent, got) {
			t.Errorf("seed %d: something else arrived", seed)
		}
		if err == nil && len(got) != size {
			t.Errorf("seed %d: a connection that lost something ended well after %d bytes", seed, len(got))
		}
		l.Close()
	}
}

func TestNewConnectionEndsTheOneBefore(t *testing.T) {
	line := newLine(t)
	l := Listen(line.guest())
	t.Cleanup(func() { l.Close() })
	h := line.host()
	mustDial(t, h)
	first := mustAccept(t, l)
	h.Close()
	second := mustDial(t, line.host())
	if _, err := first.Read(make([]byte, 1)); err == nil {
		t.Error("the first connection goes on")
	}
	if _, err := first.Write(make([]byte, 1)); err == nil {
		t.Error("the first connection takes more")
	}
	go mustAccept(t, l).Write([]byte("hello"))
	got := make([]byte, 5)
	if _, err := io.ReadFull(second, got); err != nil || string(got) != "hello" {
		t.Errorf("got %q, %v", got, err)
	}
}

// An agent that was killed and started again, and a guest that was reset.
func TestGuestThatBeginsAnewEndsTheConnection(t *testing.T) {
	line := newLine(t)
	g := line.guest()
	Listen(g)
	h := line.host()
	s := mustOpen(t, h)
	c := mustConnect(t, s)
	g.Close()
	l := Listen(line.guest())
	t.Cleanup(func() { l.Close() })
	c.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the host got %v", err)
	}
	select {
	case <-s.Closed():
	case <-time.After(time.Minute):
		t.Error("the session goes on")
	}
	go echo(l)
	h.Close()
	echoes(t, mustDial(t, line.host()), 100)
}

func TestCloseIsTheEndForTheOther(t *testing.T) {
	line := newLine(t)
	l := Listen(line.guest())
	t.Cleanup(func() { l.Close() })
	c := mustDial(t, line.host())
	g := mustAccept(t, l)
	c.Write([]byte("last words"))
	c.Close()
	got, err := io.ReadAll(g)
	if err != nil || string(got) != "last words" {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := g.Write([]byte("x")); err == nil {
		t.Error("writing goes on")
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("reading from a closed connection: %v", err)
	}
}

func TestHangUpEndsTheConnectionAndNotTheListener(t *testing.T) {
	line := newLine(t)
	ch := &hangingUp{end: line.guest(), hung: make(chan struct{})}
	l := Listen(ch)
	t.Cleanup(func() { l.Close() })
	h := line.host()
	mustDial(t, h)
	g := mustAccept(t, l)
	h.Close()
	close(ch.hung)
	line.toGuest.mu.Lock()
	line.toGuest.cond.Broadcast()
	line.toGuest.mu.Unlock()
	line.toGuest.Write([]byte{1})
	if _, err := g.Read(make([]byte, 1)); !errors.Is(err, ErrHungUp) {
		t.Errorf("got %v", err)
	}
	go echo(l)
	echoes(t, mustDial(t, line.host()), 100)
}

type hangingUp struct {
	*end
	hung chan struct{}
	told bool
}

func (h *hangingUp) Read(p []byte) (int, error) {
	n, err := h.end.Read(p)
	select {
	case <-h.hung:
		if !h.told {
			h.told = true
			return 0, ErrHungUp
		}
	default:
	}
	return n, err
}

func TestNobodyReadsMoreThanTheWindow(t *testing.T) {
	line := newLine(t)
	l := Listen(line.guest())
	t.Cleanup(func() { l.Close() })
	c := mustDial(t, line.host())
	g := mustAccept(t, l)
	c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	n, err := c.Write(make([]byte, 4*window))
	if !errors.Is(err, os.ErrDeadlineExceeded) || n != window {
		t.Errorf("wrote %d, %v", n, err)
	}
	// The channel isn't held up by it: the other direction works.
	go g.Write([]byte("back"))
	got := make([]byte, 4)
	if _, err := io.ReadFull(c, got); err != nil {
		t.Error(err)
	}
	// And it goes on where it stopped.
	go io.CopyN(io.Discard, g, 4*window)
	c.SetWriteDeadline(time.Time{})
	if k, err := c.Write(make([]byte, 4*window-n)); err != nil || k != 4*window-n {
		t.Errorf("wrote %d, %v", k, err)
	}
}

// A hostile guest sends more than the window.
func TestHostGivesUpAGuestThatIgnoresTheWindow(t *testing.T) {
	line := newLine(t)
	h := line.host()
	opened := make(chan net.Conn)
	go func() { opened <- mustDial(t, h) }()
	s := scanner{bufioReader(line.guest())}
	var f frame
	for f.kind != open {
		var err error
		if f, _, err = s.next(); err != nil {
			t.Fatal(err)
		}
	}
	var enc encoder
	line.toHost.Write(enc.append(nil, frame{kind: accept | fromGuest, session: f.session, payload: []byte{1}}))
	c := <-opened
	for i := range uint32(20) {
		line.toHost.leave(enc.append(nil, frame{kind: data | fromGuest, session: f.session, sequence: i, conn: 1, payload: make([]byte, maxPayload)}))
	}
	<-c.(*conn).ended
	n, err := io.Copy(io.Discard, c)
	if err == nil || n > window {
		t.Errorf("took %d bytes: %v", n, err)
	}
}

func TestDeadlinesMoveUnderAWait(t *testing.T) {
	line := newLine(t)
	l := Listen(line.guest())
	t.Cleanup(func() { l.Close() })
	c := mustDial(t, line.host())
	mustAccept(t, l)
	got := make(chan error)
	for range 3 {
		go func() {
			_, err := c.Read(make([]byte, 1))
			got <- err
		}()
		time.Sleep(5 * time.Millisecond)
		c.SetReadDeadline(time.Now().Add(time.Hour))
		c.SetReadDeadline(time.Now().Add(time.Millisecond))
		if err := <-got; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		c.SetReadDeadline(time.Time{})
	}
}

func TestDialEndsWithItsContext(t *testing.T) {
	line := newLine(t)
	h := line.host()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := NewSession(ctx, h); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if !h.gone() {
		t.Error("the channel is open")
	}
}
