package dhcp

import (
	"encoding/binary"
	"net/netip"
)

const (
	serverPort = 67
	clientPort = 68
)

// datagram returns what a UDP datagram in an IPv4 packet carries; nil if the
// packet is none. Checksums aren't looked at: a machine leaves them to the
// hardware that it believes to have.
func datagram(p []byte) []byte {
	if len(p) < 20 || p[0]>>4 != 4 {
		return nil
	}
	head, total := int(p[0]&0xf)*4, int(binary.BigEndian.Uint16(p[2:]))
	if head < 20 || total < head+8 || total > len(p) || p[9] != 17 || binary.BigEndian.Uint16(p[6:])&0x3fff != 0 {
		return nil
	}
	udp := p[head:total]
	length := int(binary.BigEndian.Uint16(udp[4:]))
	if binary.BigEndian.Uint16(udp[2:]) != serverPort || length < 8 || length > len(udp) {
		return nil
	}
	return udp[8:length]
}

// packet is an IPv4 packet (RFC 791 §3.1) with a UDP datagram (RFC 768) from
// the server to a client.
func packet(from, to netip.Addr, payload []byte) []byte {
	p := make([]byte, 28, 28+len(payload))
	p[0], p[8], p[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(p[2:], uint16(28+len(payload)))
	copy(p[12:], from.AsSlice())
	copy(p[16:], to.AsSlice())
	binary.BigEndian.PutUint16(p[10:], ^sum(p[:20], 0))
	binary.BigEndian.PutUint16(p[20:], serverPort)
	binary.BigEndian.PutUint16(p[22:], clientPort)
	binary.BigEndian.PutUint16(p[24:], uint16(8+len(payload)))
	p = append(p, payload...)
	// The pseudo header: addresses, protocol, length.
	check := ^sum(p[20:], uint32(sum(p[12:20], 17+uint32(8+len(payload)))))
	if check == 0 {
		check = 0xffff // 0 would mean none
	}
	binary.BigEndian.PutUint16(p[26:], check)
	return p
}

// sum is the ones' complement sum (RFC 1071).
func sum(b []byte, s uint32) uint16 {
	for ; len(b) > 1; b = b[2:] {
		s += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}
