package link

import (
	"bytes"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"
)

// room is a hatch in memory.
type room struct {
	mu      sync.Mutex
	b       []byte
	written int
	fail    int // the write that there is no space for, from 1
	writes  int
	spoil   bool
}

func (r *room) WriteAt(p []byte, off int64) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.writes++; r.writes == r.fail {
		return 0, errors.New("no space")
	}
	if n := int(off) + len(p); n > len(r.b) {
		r.b = slices.Grow(r.b, n-len(r.b))[:n]
	}
	r.written += copy(r.b[off:], p)
	return len(p), nil
}

func (r *room) ReadAt(p []byte, off int64) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if off > int64(len(r.b)) {
		return 0, io.ErrUnexpectedEOF
	}
	n := copy(p, r.b[off:])
	if r.spoil && n > 0 {
		p[n-1]++
	}
	if n < len(p) {
		return n, io.ErrUnexpectedEOF
	}
	return n, nil
}

func (r *room) passed() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.written
}

// hostHatch and guestHatch are the ends of a paced line with a hatch.
type hostHatch struct {
	*strict
	*room
}

func (h *hostHatch) Hatch() io.WriterAt { return h.room }

type guestHatch struct {
	io.ReadWriteCloser
	*room
}

func (g *guestHatch) Hatch() io.ReaderAt { return g.room }

func TestLargePayloadsPassThroughTheHatch(t *testing.T) {
	line, r := newLine(t), &room{}
	l := Listen(&guestHatch{&slow{line.guest()}, r})
	t.Cleanup(func() { l.Close() })
	go echo(l)
	for range 2 { // the guest goes on, with another host
		before := r.passed()
		s := mustOpen(t, &hostHatch{&strict{line.host(), t}, r})
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() {
				c := mustConnect(t, s)
				echoes(t, c, 10)
				echoes(t, c, 2*HatchSize)
				echoes(t, c, 10)
				c.Close()
			})
		}
		all.Wait()
		if n := r.passed() - before; n < 6*HatchSize*9/10 || n > 6*HatchSize {
			t.Errorf("%d bytes went through the hatch", n)
		}
		s.Close()
		<-s.e.done
	}
	if len(r.b) > HatchSize {
		t.Errorf("a hatch of %d bytes", len(r.b))
	}
}

func TestHatchThatOnlyOneSideHasIsNotUsed(t *testing.T) {
	for name, ends := range map[string]func(*line) (host, guest io.ReadWriteCloser){
		"host": func(l *line) (io.ReadWriteCloser, io.ReadWriteCloser) {
			return &hostHatch{&strict{l.host(), t}, &room{}}, l.guest()
		},
		"guest": func(l *line) (io.ReadWriteCloser, io.ReadWriteCloser) {
			return &strict{l.host(), t}, &guestHatch{l.guest(), &room{}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			host, guest := ends(newLine(t))
			l := Listen(guest)
			t.Cleanup(func() { l.Close() })
			go echo(l)
			echoes(t, mustConnect(t, mustOpen(t, host)), 100_000)
		})
	}
}

func TestFullHostGoesOnWithoutItsHatch(t *testing.T) {
	line, r := newLine(t), &room{fail: 3}
	l := Listen(&guestHatch{line.guest(), r})
	t.Cleanup(func() { l.Close() })
	go echo(l)
	echoes(t, mustConnect(t, mustOpen(t, &hostHatch{&strict{line.host(), t}, r})), 300_000)
	if n := r.passed(); n == 0 || n > 2*maxPayload {
		t.Errorf("%d bytes went through the hatch", n)
	}
}

// A guest that keeps its agent from reading the hatch, or changes what is
// there, harms nobody but itself.
func TestSpoiltHatchEndsTheSession(t *testing.T) {
	line, r := newLine(t), &room{spoil: true}
	l := Listen(&guestHatch{line.guest(), r})
	t.Cleanup(func() { l.Close() })
	go echo(l)
	s := mustOpen(t, &hostHatch{&strict{line.host(), t}, r})
	c := mustConnect(t, s)
	_, _ = c.Write(make([]byte, 10_000))
	if n, err := c.Read(make([]byte, 1)); err == nil {
		t.Errorf("%d bytes of it came back", n)
	}
}

// A host writes to no slot that the guest hasn't said to have read.
func TestHatchIsNotOverrun(t *testing.T) {
	line, r := newLine(t), &room{}
	// A guest that accepts, and then reads nothing.
	go func() {
		g := line.guest()
		var enc encoder
		s := scanner{bufioReader(g)}
		for {
			f, whole, err := s.next()
			if err != nil {
				return
			}
			if whole && f.kind == open {
				_, _ = g.Write(enc.append([]byte{delimiter}, frame{kind: accept | fromGuest, session: f.session, payload: []byte{newest, takesHatch}}))
			}
		}
	}()
	s := mustOpen(t, &hostHatch{&strict{line.host(), t}, r})
	for range 3 {
		c := mustConnect(t, s)
		t.Cleanup(func() { c.Close() })
		if err := c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		_, err := c.Write(make([]byte, 2*HatchSize))
		if e, ok := err.(net.Error); !ok || !e.Timeout() {
			t.Fatalf("got %v", err)
		}
	}
	if n := r.passed(); n != HatchSize {
		t.Errorf("%d bytes were put into a hatch of %d", n, HatchSize)
	}
}

func FuzzParcel(f *testing.F) {
	h := hatch{w: &room{}}
	word, _ := h.pass([]byte("text"))
	f.Add(word, []byte("text"))
	f.Add([]byte{255, 255, 255, 255, 0, 0, 0, 8, 0, 0, 0, 0}, []byte{})
	f.Fuzz(func(t *testing.T, word, there []byte) {
		take := taker{r: bytes.NewReader(there)}
		got, ok := take.take(frame{kind: parcel, payload: word})
		if ok && (got.kind != data || len(got.payload) > maxPayload || !bytes.Contains(there, got.payload)) {
			t.Fatalf("%x of %x became %+v", word, there, got)
		}
	})
}
