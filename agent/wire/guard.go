package wire

import (
	"encoding/binary"
	"fmt"
)

// guarded stands between a hostile guest and the host's multiplexer. It
// follows the frames and lets through only what a guest has reason to send:
// data and window updates on the host's streams. A ping would cost the host a
// goroutine each, a new stream a buffer, and neither is bounded by yamux when
// the guest doesn't read. Everything else a guest may send yamux bounds by the
// stream's window.
type guarded struct {
	transport
	head [frameHead]byte // of the frame that began, as far as it came
	have int
	body uint32 // bytes of it still to come
	err  error
}

// A yamux frame: version, type, flags (2), stream (4), length (4), and that
// many bytes when its type is data.
const (
	frameHead   = 12
	typeData    = 0
	typeWindow  = 1
	flagSYN     = 1
	knownFlags  = 0xf
	yamuxFormat = 0
)

func (g *guarded) Read(p []byte) (int, error) {
	if g.err != nil {
		return 0, g.err
	}
	n, err := g.transport.Read(p)
	if g.err = g.check(p[:n]); g.err != nil {
		return 0, g.err
	}
	return n, err
}

func (g *guarded) check(p []byte) error {
	for len(p) > 0 {
		if g.body > 0 {
			skip := min(uint64(g.body), uint64(len(p)))
			g.body -= uint32(skip)
			p = p[skip:]
			continue
		}
		n := copy(g.head[g.have:], p)
		g.have += n
		p = p[n:]
		if g.have < frameHead {
			return nil
		}
		g.have = 0
		kind, flags := g.head[1], binary.BigEndian.Uint16(g.head[2:])
		id, length := binary.BigEndian.Uint32(g.head[4:]), binary.BigEndian.Uint32(g.head[8:])
		if g.head[0] != yamuxFormat || kind > typeWindow || flags&flagSYN != 0 || flags&^uint16(knownFlags) != 0 || id%2 != 1 {
			return fmt.Errorf("the guest's agent broke the protocol: frame % x", g.head)
		}
		if kind == typeData {
			g.body = length
		}
	}
	return nil
}
