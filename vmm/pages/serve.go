package pages

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// Source is a memory.
type Source interface {
	io.ReaderAt
	// Size is in bytes, a multiple of 4096.
	Size() int64
	// Data is the first part at an offset or behind it that may be other than
	// zeroes, of which begin and end are Size if there is none.
	Data(off int64) (from, end int64, err error)
}

// chunk is how much goes at once while nothing is wanted: what is wanted then
// waits for no more than that.
const chunk = 64 << 10

// errLeft is that who has the guest is gone.
var errLeft = errors.New("the guest's side has left before it had all")

// Serve sends a memory to who is at the other end, until that has all and
// leaves, or ctx ends. It closes the connection.
func Serve(ctx context.Context, conn net.Conn, memory Source) error {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	size := memory.Size()
	s := &server{conn: conn, memory: memory, sent: make([]uint64, (size/pageSize+63)/64), unsent: size / pageSize, left: make(chan error, 1)}
	go func() { s.left <- s.listen() }()
	err := s.run()
	if err == nil { // if it went now, what is on its way could be lost
		if err = <-s.left; errors.Is(err, io.EOF) {
			err = nil
		}
	}
	conn.Close()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return fmt.Errorf("serve the memory of a guest: %w", err)
}

type server struct {
	conn   net.Conn
	memory Source
	sent   []uint64 // a bit for each page
	unsent int64    // pages
	next   int64    // where the rest begins
	buffer [headSize + chunk]byte

	mu    sync.Mutex
	wants []head
	left  chan error // why nobody wants anything any more
}

// listen takes wants until the connection ends.
func (s *server) listen() error {
	for {
		h, err := readHead(s.conn, s.memory.Size())
		if err != nil {
			return err
		}
		if h.zero || h.size > MaxPart {
			return fmt.Errorf("%w: %d bytes are wanted at once", errBroken, h.size)
		}
		s.mu.Lock()
		s.wants = append(s.wants, h)
		many := int64(len(s.wants)) > s.memory.Size()/pageSize
		s.mu.Unlock()
		if many {
			return fmt.Errorf("%w: more is wanted than there is", errBroken)
		}
	}
}

// run sends what is wanted, and the rest when nothing is.
func (s *server) run() error {
	if _, err := s.conn.Write(greeting(s.memory.Size())); err != nil {
		return err
	}
	for s.unsent > 0 {
		s.mu.Lock()
		wants := s.wants
		s.wants = nil
		s.mu.Unlock()
		for _, h := range wants {
			for off := h.offset; off < h.offset+h.size; off += chunk {
				if err := s.send(off, min(off+chunk, h.offset+h.size)); err != nil {
					return err
				}
			}
		}
		select {
		case err := <-s.left:
			if errors.Is(err, io.EOF) {
				err = errLeft
			}
			return err
		default:
		}
		if len(wants) > 0 {
			continue
		}
		if err := s.rest(); err != nil {
			return err
		}
	}
	return nil
}

// rest sends the next piece that wasn't sent.
func (s *server) rest() error {
	size := s.memory.Size()
	for s.next < size && s.has(s.next) {
		s.next += pageSize
	}
	if s.next == size {
		return nil
	}
	from, _, err := s.memory.Data(s.next)
	if err != nil {
		return err
	}
	if from = from / pageSize * pageSize; from > s.next {
		if err := s.zero(s.next, from); err != nil {
			return err
		}
		s.next = from
		return nil
	}
	end := s.next
	for end < min(s.next+chunk, size) && !s.has(end) {
		end += pageSize
	}
	from, s.next = s.next, end
	return s.send(from, end)
}

func (s *server) has(off int64) bool {
	return s.sent[off/pageSize/64]>>(off/pageSize%64)&1 != 0
}

// pieces calls f with what of a part wasn't sent, which then is.
func (s *server) pieces(from, end int64, f func(from, end int64) error) error {
	for from < end {
		for from < end && s.has(from) {
			from += pageSize
		}
		to := from
		for ; to < end && !s.has(to); to += pageSize {
			s.sent[to/pageSize/64] |= 1 << (to / pageSize % 64)
			s.unsent--
		}
		if from < to {
			if err := f(from, to); err != nil {
				return err
			}
		}
		from = to
	}
	return nil
}

// zero says that a part is zeroes.
func (s *server) zero(from, end int64) error {
	return s.pieces(from, end, func(from, end int64) error {
		_, err := s.conn.Write(head{offset: from, size: end - from, zero: true}.append(nil))
		return err
	})
}

// send sends a part, a chunk at most.
func (s *server) send(from, end int64) error {
	return s.pieces(from, end, func(from, end int64) error {
		b := head{offset: from, size: end - from}.append(s.buffer[:0])[:headSize+end-from]
		if n, err := s.memory.ReadAt(b[headSize:], from); n < int(end-from) {
			return fmt.Errorf("read it: %w", cmp.Or(err, io.ErrUnexpectedEOF))
		}
		_, err := s.conn.Write(b)
		return err
	})
}
