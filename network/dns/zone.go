package dns

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/miekg/dns"
)

// ttl is short: an address may pass to another guest.
const ttl = 5

// zone holds the names of one network and answers from them.
type zone struct {
	listeners listeners

	mu     sync.RWMutex
	config Zone
	names  map[string][]netip.Addr
	owners map[netip.Addr]string
}

func newZone() *zone {
	return &zone{names: map[string][]netip.Addr{}, owners: map[netip.Addr]string{}}
}

func (z *zone) configure(c Zone) {
	z.mu.Lock()
	defer z.mu.Unlock()
	c.Domain = strings.ToLower(strings.Trim(c.Domain, "."))
	z.config = c
}

func (z *zone) setNames(names map[string][]netip.Addr) {
	z.mu.Lock()
	z.names, z.owners = map[string][]netip.Addr{}, map[netip.Addr]string{}
	z.mu.Unlock()
	for name, addrs := range names {
		z.setName(strings.ToLower(name), addrs)
	}
}

func (z *zone) setName(name string, addrs []netip.Addr) {
	z.mu.Lock()
	defer z.mu.Unlock()
	for _, a := range z.names[name] {
		if z.owners[a] == name {
			delete(z.owners, a)
		}
	}
	delete(z.names, name)
	if len(addrs) == 0 {
		return
	}
	z.names[name] = slices.Clone(addrs)
	for _, a := range addrs {
		z.owners[a] = name
	}
}

// serves tells whether source is a guest of the zone, whose questions are
// passed on; the host's own are not.
func (z *zone) serves(source netip.Addr) bool {
	z.mu.RLock()
	defer z.mu.RUnlock()
	return z.inSubnets(source) && !slices.Contains(z.config.Gateways, source)
}

func (z *zone) inSubnets(a netip.Addr) bool {
	return slices.ContainsFunc(z.config.Subnets, func(p netip.Prefix) bool { return p.Contains(a) })
}

// answer makes the reply to a well-formed query from what the zone knows.
// It is false when others must be asked.
func (z *zone) answer(q *dns.Msg) (*dns.Msg, bool) {
	r := new(dns.Msg).SetReply(q)
	r.RecursionAvailable = true
	question := q.Question[0]
	name := strings.ToLower(strings.TrimSuffix(question.Name, "."))

	z.mu.RLock()
	defer z.mu.RUnlock()
	if addr, ok := reverse(name); ok {
		return z.answerReverse(r, addr)
	}
	host, inDomain := strings.CutSuffix(name, "."+z.config.Domain)
	switch {
	case name == z.config.Domain:
		z.fill(r, nil)
	case name == "localhost" || strings.HasSuffix(name, ".localhost"): // RFC 6761 §6.3
		z.fill(r, []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()})
	case inDomain || !strings.Contains(name, "."):
		addrs, known := z.names[host]
		switch {
		case known:
			z.fill(r, addrs)
		case inDomain || question.Qtype == dns.TypeA || question.Qtype == dns.TypeAAAA:
			// A host without a domain is one of ours or none: the host's
			// resolvers have no business with it.
			z.deny(r, dns.RcodeNameError)
		default:
			return nil, false // like NS of a top-level domain
		}
	default:
		return nil, false
	}
	return r, true
}

// fill answers with those addresses that were asked for.
func (z *zone) fill(r *dns.Msg, addrs []netip.Addr) {
	q := r.Question[0]
	header := dns.RR_Header{Name: q.Name, Class: dns.ClassINET, Ttl: ttl}
	r.Authoritative = true
	for _, a := range addrs {
		switch {
		case a.Is4() && (q.Qtype == dns.TypeA || q.Qtype == dns.TypeANY):
			header.Rrtype = dns.TypeA
			r.Answer = append(r.Answer, &dns.A{Hdr: header, A: net.IP(a.AsSlice())})
		case a.Is6() && (q.Qtype == dns.TypeAAAA || q.Qtype == dns.TypeANY):
			header.Rrtype = dns.TypeAAAA
			r.Answer = append(r.Answer, &dns.AAAA{Hdr: header, AAAA: net.IP(a.AsSlice())})
		}
	}
	if len(r.Answer) == 0 {
		z.deny(r, dns.RcodeSuccess)
	}
}

// deny says that the name or the type isn't there, for as long as an answer
// would hold (RFC 2308 §3).
func (z *zone) deny(r *dns.Msg, rcode int) {
	r.Authoritative, r.Rcode = true, rcode
	apex := dns.Fqdn(z.config.Domain)
	r.Ns = []dns.RR{&dns.SOA{
		Hdr: dns.RR_Header{Name: apex, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: ttl},
		Ns:  apex, Mbox: "nobody.invalid.", Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: ttl,
	}}
}

func (z *zone) answerReverse(r *dns.Msg, addr netip.Addr) (*dns.Msg, bool) {
	if !z.inSubnets(addr) {
		return nil, false
	}
	owner, known := z.owners[addr]
	q := r.Question[0]
	switch {
	case !known:
		z.deny(r, dns.RcodeNameError)
	case q.Qtype != dns.TypePTR && q.Qtype != dns.TypeANY:
		z.deny(r, dns.RcodeSuccess)
	default:
		r.Authoritative = true
		r.Answer = []dns.RR{&dns.PTR{
			Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypePTR, Class: dns.ClassINET, Ttl: ttl},
			Ptr: dns.Fqdn(owner + "." + z.config.Domain),
		}}
	}
	return r, true
}

// reverse reads the address out of a name below in-addr.arpa (RFC 1035 §3.5)
// or ip6.arpa (RFC 3596 §2.5).
func reverse(name string) (netip.Addr, bool) {
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		parts := strings.Split(rest, ".")
		slices.Reverse(parts)
		a, err := netip.ParseAddr(strings.Join(parts, "."))
		return a, err == nil && a.Is4()
	}
	rest, ok := strings.CutSuffix(name, ".ip6.arpa")
	if !ok || len(rest) != 63 {
		return netip.Addr{}, false
	}
	var text strings.Builder
	for i := 31; i >= 0; i-- {
		if i != 31 && rest[2*i+1] != '.' {
			return netip.Addr{}, false
		}
		text.WriteByte(rest[2*i])
		if i%4 == 0 && i != 0 {
			text.WriteByte(':')
		}
	}
	a, err := netip.ParseAddr(text.String())
	return a, err == nil
}
