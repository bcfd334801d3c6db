package link

import (
	"encoding/binary"
	"hash/crc32"
	"io"
)

// A hatch is room beside a channel that carries little at a time, through
// which the host passes large payloads: the channel then carries only the
// word of where one lies. On a serial line of User Mode Linux, which reads
// each byte by a system call of its own, 0.4 MB/s come into the guest without
// it, and 4 (files of 10 KiB) to 30 with it.
//
// It exists on paced channels only, whose credits tell what the guest has
// taken from it. The host never reads it, and what the guest finds there is
// checked against the word, so that it may be in anyone's reach.

// HatchWriter is a host's channel that may have a hatch; nil is none.
type HatchWriter interface {
	Paced
	Hatch() io.WriterAt
}

// HatchReader is the guest's end; nil is none.
type HatchReader interface {
	Hatch() io.ReaderAt
}

// HatchSize is what a hatch holds.
const HatchSize = hatchSlots * maxPayload

const (
	hatchSlots = 16
	// hatchLeast is what is passed: less comes sooner over the channel.
	hatchLeast = 256
	// hatchWord is the payload of a parcel: its place, size and check sum,
	// 4 bytes each.
	hatchWord = 12
)

// takesHatch in the fourth byte of an open frame asks the guest whether it
// has the other end of the hatch; it has if the answer has it as second byte.
const takesHatch = 1

// hatch is the host's end. Its slots are used in turn, from the first
// whenever all are free, so that what is passed seldom takes little room.
type hatch struct {
	w    io.WriterAt // nil when there is none, or the guest can't use it
	next int
	used int
}

// full tells whether p has to wait for a slot.
func (h *hatch) full() bool { return h.used == hatchSlots }

// passes tells whether so much is to be passed.
func (h *hatch) passes(n int) bool { return h.w != nil && n > hatchLeast }

// pass puts p, of maxPayload bytes at most, into a slot, and returns the word
// of it. There may be no room on the host; then there is no hatch any more.
func (h *hatch) pass(p []byte) (word []byte, ok bool) {
	if h.used == 0 {
		h.next = 0
	}
	at := h.next % hatchSlots * maxPayload
	if _, err := h.w.WriteAt(p, int64(at)); err != nil {
		h.w = nil
		return nil, false
	}
	h.next++
	h.used++
	word = binary.BigEndian.AppendUint32(nil, uint32(at))
	word = binary.BigEndian.AppendUint32(word, uint32(len(p)))
	return binary.BigEndian.AppendUint32(word, crc32.Checksum(p, castagnoli)), true
}

// taker is the guest's end.
type taker struct {
	r   io.ReaderAt
	buf []byte
}

// take makes of a parcel the data that it stands for, which is good until the
// next call.
func (t *taker) take(f frame) (frame, bool) {
	if t.r == nil || len(f.payload) != hatchWord {
		return frame{}, false
	}
	at, n := binary.BigEndian.Uint32(f.payload), binary.BigEndian.Uint32(f.payload[4:])
	if n > maxPayload || at > HatchSize-n {
		return frame{}, false
	}
	if t.buf == nil {
		t.buf = make([]byte, maxPayload)
	}
	p := t.buf[:n]
	if _, err := t.r.ReadAt(p, int64(at)); err != nil || crc32.Checksum(p, castagnoli) != binary.BigEndian.Uint32(f.payload[8:]) {
		return frame{}, false
	}
	f.kind, f.payload = data, p
	return f, true
}
