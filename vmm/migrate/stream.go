package migrate

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

// stall is how long the other side may do nothing that was its turn.
const stall = time.Minute

// flushing is how long a destination may take to have a round's disks stay.
const flushing = 10 * time.Minute

// maxStreams bounds how many a migration has.
const maxStreams = 8

// stream is one connection. Frames are read by one goroutine and written by
// another.
type stream struct {
	net.Conn
	in  *bufio.Reader
	out *bufio.Writer

	mu               sync.Mutex
	deaf, speechless bool // for good
}

func newStream(c net.Conn) *stream {
	return &stream{Conn: c, in: bufio.NewReaderSize(c, 64<<10), out: bufio.NewWriterSize(c, 64<<10)}
}

// past is a deadline that ends what waits, with errPast.
var (
	past    = time.Unix(1, 0)
	errPast = os.ErrDeadlineExceeded
)

// halt ends what waits for reading and, if asked to, for writing, and has all
// that would wait later end as well.
func (s *stream) halt(writing bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deaf, s.speechless = true, s.speechless || writing
	_ = s.SetReadDeadline(past)
	if writing {
		_ = s.SetWriteDeadline(past)
	}
}

// revive undoes a halt of reading, of which nothing was lost: nothing came.
func (s *stream) revive() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deaf = false
	_ = s.SetReadDeadline(time.Time{})
}

// halted tells whether it was said to wait no more.
func (s *stream) halted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.deaf
}

// patience sets a deadline, unless it was said to wait no more.
func (s *stream) patience(no *bool, set func(time.Time) error, d time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if *no {
		return errPast
	}
	return set(time.Now().Add(d))
}

// secure makes a TLS stream of a connection, or leaves it as it is without a
// configuration: then it must be one between processes of this host.
func secure(ctx context.Context, c net.Conn, config *tls.Config, side func(net.Conn, *tls.Config) *tls.Conn) (*stream, error) {
	if config == nil {
		switch c.LocalAddr().Network() {
		case "unix", "pipe":
			return newStream(c), nil
		}
		return nil, errors.New("migrate over a network: certificates are missing")
	}
	t := side(c, config)
	ctx, cancel := context.WithTimeout(ctx, stall)
	defer cancel()
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("migrate to or from %s: %w", c.RemoteAddr(), err)
	}
	return newStream(t), nil
}

// put writes a frame into the buffer.
func (s *stream) put(h head, payload []byte) error {
	h.length = uint32(len(payload))
	if err := s.patience(&s.speechless, s.SetWriteDeadline, stall); err != nil {
		return err
	}
	if _, err := s.out.Write(h.append(make([]byte, 0, headSize))); err != nil {
		return err
	}
	_, err := s.out.Write(payload)
	return err
}

// send writes a frame and all before it.
func (s *stream) send(h head, payload []byte) error {
	if err := s.put(h, payload); err != nil {
		return err
	}
	return s.out.Flush()
}

// abort says that there will be nothing more, and why. That it doesn't arrive
// is no matter: then the connection's end says so.
func (s *stream) abort(why error) {
	text := why.Error()
	_ = s.send(head{kind: kindAbort}, []byte(text[:min(len(text), maxText)]))
}

// errAborted is that the other side gave up.
var errAborted = errors.New("the other side gave up")

// next reads a head. An abort is an error.
func (s *stream) next() (head, error) { return s.nextWithin(stall) }

func (s *stream) nextWithin(d time.Duration) (head, error) {
	if err := s.patience(&s.deaf, s.SetReadDeadline, d); err != nil {
		return head{}, err
	}
	return s.frame()
}

// frame reads a head, for as long as was allowed before.
func (s *stream) frame() (head, error) {
	h, err := readHead(s.in)
	if err != nil || h.kind != kindAbort {
		return h, err
	}
	text, err := h.payload(s.in)
	if err != nil {
		return h, err
	}
	return h, fmt.Errorf("%w: %q", errAborted, text)
}

// expect reads a frame without payload of a kind.
func (s *stream) expect(k kind, offset uint64) error { return s.expectWithin(stall, k, offset) }

func (s *stream) expectWithin(d time.Duration, k kind, offset uint64) error {
	h, err := s.nextWithin(d)
	if err != nil {
		return err
	}
	if h.kind != k || h.offset != offset {
		return broken("a frame of kind %d where one of kind %d was due", h.kind, k)
	}
	return nil
}

// hello is the first frame of a stream.
type hello struct {
	Version int
	Session string
	Stream  int
	Streams int
	Resume  bool            `json:",omitempty"` // of what was interrupted
	Volumes []Info          `json:",omitempty"`
	Guest   json.RawMessage `json:",omitempty"`
}

// maxVolumes bounds those of a guest.
const maxVolumes = 64

// check tells what can't be.
func (h *hello) check() error {
	switch {
	case h.Version != version:
		return fmt.Errorf("the source speaks version %d of the protocol, and not %d", h.Version, version)
	case h.Session == "" || h.Streams < 1 || h.Streams > maxStreams || h.Stream < 0 || h.Stream >= h.Streams:
		return broken("stream %d of %d", h.Stream, h.Streams)
	case h.Stream == 0 && !h.Resume && (len(h.Volumes) == 0 || len(h.Volumes) > maxVolumes):
		return broken("%d volumes", len(h.Volumes))
	}
	for _, v := range h.Volumes {
		if v.Size < 0 {
			return broken("volume %q has %d bytes", v.Name, v.Size)
		}
	}
	return nil
}

// readHello reads the first frame of a stream.
func (s *stream) readHello() (*hello, error) {
	h, err := s.next()
	if err != nil {
		return nil, err
	}
	if h.kind != kindHello {
		return nil, broken("it begins with a frame of kind %d", h.kind)
	}
	b, err := h.payload(s.in)
	if err != nil {
		return nil, err
	}
	m := &hello{}
	if err := json.Unmarshal(b, m); err != nil {
		return nil, broken("%v", err)
	}
	return m, m.check()
}
