package link

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"slices"
)

// A frame, before it is stuffed, numbers big-endian:
//
//	kind      1 byte
//	session   8 bytes, chosen by the host
//	sequence  4 of the side's frames in the session, from 0
//	conn      4 the connection that it is about
//	payload   up to maxPayload
//	check     4 CRC-32C of all before
//
// Frames are stuffed so that they hold no zero byte (consistent overhead byte
// stuffing, Cheshire and Baker, 1999), and end with one. Both sides take an
// empty frame for nothing, so that one zero byte more ends what may be half a
// frame of an earlier time.
const (
	headSize   = 1 + 8 + 4 + 4
	checkSize  = 4
	maxPayload = 32 << 10
	// maxStuffed is one frame on the channel, without its end.
	maxStuffed = headSize + maxPayload + checkSize + (headSize+maxPayload+checkSize)/stuffBlock + 1
	delimiter  = 0
)

// kind is what a frame is for. On the channel those of the guest have a bit
// set, so that an echo (of a terminal line that isn't in raw mode yet) is
// nobody's frame.
type kind byte

const (
	// Without sequence, and not about a connection:
	open   kind = 1 + iota // host: begin a session; payload: newest and oldest version
	accept                 // guest: payload: the version
	reset                  // guest: that session, or with 0 any, is unknown

	connect // host: begin a connection
	data    // both, as the following
	ack     // payload: bytes consumed since the beginning, 8
	finish  // end of the connection
	credit  // guest: frames with a sequence that it has read, 4; about no connection
	parcel  // host: data that lies in the hatch; payload: where

	fromGuest kind = 0x80
)

type frame struct {
	kind     kind
	session  uint64
	sequence uint32
	conn     uint32
	payload  []byte
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encoder stuffs frames.
type encoder struct{ plain []byte }

// append appends f as it goes over the channel.
func (e *encoder) append(dst []byte, f frame) []byte {
	e.plain = append(e.plain[:0], byte(f.kind))
	p := e.plain
	p = binary.BigEndian.AppendUint64(p, f.session)
	p = binary.BigEndian.AppendUint32(p, f.sequence)
	p = binary.BigEndian.AppendUint32(p, f.conn)
	p = append(p, f.payload...)
	p = binary.BigEndian.AppendUint32(p, crc32.Checksum(p, castagnoli))
	e.plain = p
	dst = slices.Grow(dst, len(p)+len(p)/stuffBlock+2)
	return append(stuff(dst, p), delimiter)
}

// stuffBlock is the longest run without a zero byte that one code stands for.
const stuffBlock = 254

// stuff appends src without its zero bytes: each run of other bytes follows a
// code, its length plus one. A run of stuffBlock ends without a zero.
func stuff(dst, src []byte) []byte {
	for {
		run := src[:min(len(src), stuffBlock)]
		if i := bytes.IndexByte(run, 0); i >= 0 {
			dst = append(append(dst, byte(i+1)), run[:i]...)
			src = src[i+1:]
			continue
		}
		dst = append(append(dst, byte(len(run)+1)), run...)
		src = src[len(run):]
		if len(src) == 0 {
			return dst
		}
	}
}

// unstuff undoes stuff in place.
func unstuff(p []byte) ([]byte, bool) {
	out := p[:0]
	for len(p) > 0 {
		code := int(p[0])
		if code == 0 || code > len(p) {
			return nil, false
		}
		out = append(out, p[1:code]...)
		p = p[code:]
		if code <= stuffBlock && len(p) > 0 {
			out = append(out, 0)
		}
	}
	return out, true
}

// parse reads a stuffed frame, which it destroys; its payload is a part of p.
func parse(p []byte) (frame, bool) {
	p, ok := unstuff(p)
	if !ok || len(p) < headSize+checkSize || len(p) > headSize+maxPayload+checkSize {
		return frame{}, false
	}
	body := p[:len(p)-checkSize]
	if crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(p[len(body):]) {
		return frame{}, false
	}
	return frame{
		kind:     kind(body[0]),
		session:  binary.BigEndian.Uint64(body[1:]),
		sequence: binary.BigEndian.Uint32(body[9:]),
		conn:     binary.BigEndian.Uint32(body[13:]),
		payload:  body[headSize:],
	}, true
}

// scanner reads frames from a channel.
type scanner struct{ r *bufio.Reader }

// next returns the next frame, which is good until the next call; it isn't
// whole when there was something else.
func (s *scanner) next() (f frame, whole bool, err error) {
	for {
		p, err := s.r.ReadSlice(delimiter)
		if errors.Is(err, bufio.ErrBufferFull) {
			return frame{}, false, s.skip()
		}
		if err != nil {
			return frame{}, false, err
		}
		if len(p) > 1 {
			f, whole = parse(p[:len(p)-1])
			return f, whole, nil
		}
	}
}

// skip passes by the rest of what is too long for a frame.
func (s *scanner) skip() error {
	for {
		_, err := s.r.ReadSlice(delimiter)
		if !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
}
