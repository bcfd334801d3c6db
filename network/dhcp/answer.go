package dhcp

import (
	"bytes"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// leaseTime is long: an address is a guest's as long as the guest exists, and
// it must not lose it because the daemon is down for a day.
const leaseTime = 7 * 24 * time.Hour

// minReply is the least that a message has with its options, as BOOTP had
// (RFC 1542 §2.1); some clients drop shorter ones.
const minReply = 300

// answer returns the packet that answers a packet of a station, or nil.
func (l *listener) answer(p []byte, from net.HardwareAddr, now time.Time) []byte {
	b := datagram(p)
	if b == nil {
		return nil
	}
	q, err := dhcpv4.FromBytes(b)
	switch {
	case err != nil, q.OpCode != dhcpv4.OpcodeBootRequest:
		return nil
	case !bytes.Equal(q.ClientHWAddr, from): // it asks for another
		return nil
	case !q.GatewayIPAddr.IsUnspecified() && q.GatewayIPAddr != nil: // by a relay, of which there is none
		return nil
	}
	lease, ok := l.server.find(l.network.ID, from)
	if !ok || !lease.Addr.Is4() || !l.rates.allow(from, now) {
		return nil
	}
	kind := l.decide(q, lease)
	if kind == dhcpv4.MessageTypeNone {
		return nil
	}
	r, err := dhcpv4.NewReplyFromRequest(q, l.options(q, lease, kind)...)
	if err != nil {
		return nil
	}
	reply := r.ToBytes()
	if short := minReply - len(reply); short > 0 {
		reply = append(reply, make([]byte, short)...)
	}
	return packet(l.network.Gateway.Addr(), destination(q, r, kind), reply)
}

// decide tells how a message is answered (RFC 2131 §4.3); none for silence.
func (l *listener) decide(q *dhcpv4.DHCPv4, lease Lease) dhcpv4.MessageType {
	ours := func(ip net.IP) bool {
		a, ok := netip.AddrFromSlice(ip)
		return ok && a.Unmap() == lease.Addr
	}
	given := func(ip net.IP) bool { return len(ip) > 0 && !ip.IsUnspecified() }
	verdict := func(ip net.IP) dhcpv4.MessageType {
		if ours(ip) {
			return dhcpv4.MessageTypeAck
		}
		return dhcpv4.MessageTypeNak
	}
	server := q.ServerIdentifier()
	switch q.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		return dhcpv4.MessageTypeOffer
	case dhcpv4.MessageTypeInform:
		if ours(q.ClientIPAddr) {
			return dhcpv4.MessageTypeAck
		}
	case dhcpv4.MessageTypeDecline:
		// Somebody else has it, which the packet filter doesn't allow: worth
		// a word.
		l.server.log.Warn("dhcp: a guest declines its address", "network", l.network.ID, "mac", q.ClientHWAddr, "address", lease.Addr)
	case dhcpv4.MessageTypeRequest:
		switch {
		case given(server) && !server.Equal(l.network.Gateway.Addr().AsSlice()): // it chose another server
		case given(q.ClientIPAddr): // renewing or rebinding
			return verdict(q.ClientIPAddr)
		case given(q.RequestedIPAddress()): // selecting, or after a reboot
			return verdict(q.RequestedIPAddress())
		}
	}
	return dhcpv4.MessageTypeNone
}

// options fill in a reply.
func (l *listener) options(q *dhcpv4.DHCPv4, lease Lease, kind dhcpv4.MessageType) []dhcpv4.Modifier {
	gateway := l.network.Gateway.Addr().AsSlice()
	m := []dhcpv4.Modifier{dhcpv4.WithMessageType(kind), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(gateway))}
	if id := q.Options.Get(dhcpv4.OptionClientIdentifier); id != nil {
		m = append(m, dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.OptionClientIdentifier, id))) // RFC 6842
	}
	if kind == dhcpv4.MessageTypeNak {
		return m
	}
	if q.MessageType() != dhcpv4.MessageTypeInform {
		m = append(m, dhcpv4.WithYourIP(lease.Addr.AsSlice()), dhcpv4.WithLeaseTime(uint32(leaseTime/time.Second)))
	}
	mask := net.CIDRMask(l.network.Gateway.Bits(), 32)
	m = append(m, dhcpv4.WithNetmask(mask), dhcpv4.WithRouter(gateway), dhcpv4.WithDNS(gateway))
	if l.network.Domain != "" {
		m = append(m, dhcpv4.WithOption(dhcpv4.OptDomainName(l.network.Domain)))
	}
	if lease.Hostname != "" {
		m = append(m, dhcpv4.WithOption(dhcpv4.OptHostName(lease.Hostname)))
	}
	if lease.MTU > 0 {
		m = append(m, dhcpv4.WithGeneric(dhcpv4.OptionInterfaceMTU, []byte{byte(lease.MTU >> 8), byte(lease.MTU)}))
	}
	if q.IsOptionRequested(dhcpv4.OptionClasslessStaticRoute) {
		// Who asks for it must find the default route in it (RFC 3442).
		all := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
		m = append(m, dhcpv4.WithOption(dhcpv4.OptClasslessStaticRoute(&dhcpv4.Route{Dest: all, Router: gateway})))
	}
	if q.IsOptionRequested(dhcpv4.OptionDNSDomainSearchList) && l.network.Domain != "" {
		m = append(m, dhcpv4.WithDomainSearchList(l.network.Domain))
	}
	return m
}

// destination is where a reply goes (RFC 2131 §4.1).
func destination(q, r *dhcpv4.DHCPv4, kind dhcpv4.MessageType) netip.Addr {
	to := r.YourIPAddr
	if !q.ClientIPAddr.IsUnspecified() {
		to = q.ClientIPAddr
	}
	a, ok := netip.AddrFromSlice(to)
	if a = a.Unmap(); !ok || !a.Is4() || a.IsUnspecified() || kind == dhcpv4.MessageTypeNak || q.ClientIPAddr.IsUnspecified() && q.IsBroadcast() {
		return netip.AddrFrom4([4]byte{255, 255, 255, 255})
	}
	return a
}

// Answers that a station gets: as many at once, and a second.
const (
	burst     = 20
	perSecond = 2
)

// rates bound the answers to each station. There are never more stations in
// it than the network has.
type rates struct{ spent map[[6]byte]bucket }

type bucket struct {
	left float64
	at   time.Time
}

// allow takes one answer.
func (r *rates) allow(mac net.HardwareAddr, now time.Time) bool {
	if len(mac) != 6 {
		return false
	}
	if r.spent == nil || len(r.spent) > 4096 { // most of them have gone by now
		r.spent = map[[6]byte]bucket{}
	}
	b, ok := r.spent[[6]byte(mac)]
	if !ok {
		b = bucket{burst, now}
	}
	b.left = min(burst, b.left+now.Sub(b.at).Seconds()*perSecond)
	b.at = now
	ok = b.left >= 1
	if ok {
		b.left--
	}
	r.spent[[6]byte(mac)] = b
	return ok
}
