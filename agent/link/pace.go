package link

import "encoding/binary"

// Paced is a channel to a guest that must not have more than Pace bytes on
// their way. On a serial line of User Mode Linux more than the terminal's 4 KiB
// is the end: its driver stops listening when the terminal is full, and never
// listens again (Linux 6.1, arch/um/drivers/line.c: line_throttle, with
// nothing that undoes deactivate_chan).
type Paced interface {
	Pace() int
}

// askCredit in the third byte of an open frame asks the guest to tell what it
// has read.
const askCredit = 1

// pace bounds what the host has on its way in a session. Only data waits for
// it; other frames are few and small.
type pace struct {
	limit    int    // bytes; 0 for no bound
	flight   []sent // the frames that the guest has not told of
	bytes    int    // the sum of their sizes
	credited uint32 // frames that it told of
	hatch    hatch

	tell bool // the guest's side: the host wants to know
	told bool // it knows
}

// sent is a frame on its way.
type sent struct {
	size   int
	parcel bool
}

// begin forgets the session.
func (p *pace) begin() {
	p.flight, p.bytes, p.credited = nil, 0, 0
	p.hatch = hatch{}
	p.tell = false
}

func (p *pace) send(size int, parcel bool) {
	if p.limit > 0 {
		p.flight = append(p.flight, sent{size, parcel})
		p.bytes += size
	}
}

// may tells whether data may be sent.
func (p *pace) may() bool { return p.limit == 0 || p.bytes < p.limit/2 }

// payload is the most that one frame may carry: half of the limit, with its
// head.
func (p *pace) payload() int {
	if p.limit == 0 {
		return maxPayload
	}
	return p.limit/2 - headSize - checkSize - stuffBlock/16
}

// credit takes what the guest says that it has read.
func (p *pace) credit(payload []byte) bool {
	if len(payload) != 4 {
		return false
	}
	n := int(binary.BigEndian.Uint32(payload) - p.credited)
	if n < 1 || n > len(p.flight) {
		return false
	}
	for _, f := range p.flight[:n] {
		if p.bytes -= f.size; f.parcel {
			p.hatch.used--
		}
	}
	p.flight = p.flight[n:]
	p.credited += uint32(n)
	return true
}
