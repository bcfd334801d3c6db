package nft

import (
	"encoding/binary"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"golang.org/x/sys/unix"
)

// schema names the shape of the tables: it changes whenever a set or a base
// chain does, and tables of another schema are made anew.
const schema = "schema-1"

// A chain with its rules; hook is nil for one that others jump to.
type chain struct {
	name     string
	kind     nftables.ChainType
	hook     *nftables.ChainHook
	priority int32
	rules    [][]statement
}

func rule(s ...statement) []statement { return s }

// Limits on what one guest can make the host do.
const (
	queriesPerSecond = 1000 // DNS queries of one address
	shoutsPerSecond  = 200  // broadcast and multicast frames of one port
)

var everybody = []byte{255, 255, 255, 255}

var loopback6 = append(make([]byte, 15), 1)

// inetChains translate addresses and keep guests from the host.
func inetChains(s *sets) []chain {
	fromGuest, toGuest := in(s.bridges, iifname), in(s.bridges, oifname)
	return []chain{
		// A guest must not reach the host's loopback, which route_localnet
		// on its bridge would otherwise allow. Before connection tracking:
		// what comes back to a published 127.0.0.1 still bears the bridge's
		// own address here.
		{name: "raw", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookPrerouting, priority: -300, rules: [][]statement{
			rule(fromGuest, ipv4, is(ip4Dest8, []byte{127}), drop),
			rule(fromGuest, ipv6, is(ip6Dest, loopback6), drop),
		}},
		{name: "published", rules: [][]statement{
			rule(ipv4, pick(s.one4, ip4Dest, l4proto, dport), dnat(unix.NFPROTO_IPV4, 4)),
			rule(ipv6, pick(s.one6, ip6Dest, l4proto, dport), dnat(unix.NFPROTO_IPV6, 16)),
			rule(ipv4, pick(s.any4, l4proto, dport), dnat(unix.NFPROTO_IPV4, 4)),
			rule(ipv6, pick(s.any6, l4proto, dport), dnat(unix.NFPROTO_IPV6, 16)),
		}},
		{name: "prerouting", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookPrerouting, priority: -100, rules: [][]statement{
			// The gateway's own DNS stays reachable when a guest publishes port 53.
			rule(fromGuest, toDNS, toBridge, accept),
			// From the wire, 127.0.0.1 would be translated before the kernel
			// sees that it is no destination to come in by.
			rule(ipv4, is(ip4Dest8, []byte{127}), accept),
			rule(toHost, jump("published")),
		}},
		{name: "output", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookOutput, priority: -100, rules: [][]statement{
			// The kernel has no route_localnet for IPv6: a connection from
			// ::1 would hang. Refused at once, clients go on to 127.0.0.1.
			rule(ipv6, is(ip6Dest, loopback6), accept),
			rule(toHost, jump("published")),
		}},
		{name: "postrouting", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookPostrouting, priority: 100, rules: [][]statement{
			rule(toGuest, ipv4, is(ip4Src8, []byte{127}), masquerade),
			// A guest that asks for a published port of its own network: the
			// answer must come back through the host. Where bridges call
			// iptables it does, and there is no interface to have come in by;
			// but nobody takes a packet from himself.
			rule(fromGuest, toGuest, translated, masquerade),
			rule(toGuest, ipv4, in(s.self4, ip4Source, ip4Dest), masquerade),
			rule(toGuest, ipv6, in(s.self6, ip6Source, ip6Dest), masquerade),
			rule(in(s.nat, iifname), notIn(s.bridges, oifname), masquerade),
		}},
		{name: "from-guest", rules: [][]statement{
			rule(known, accept),
			rule(invalid, drop),
			rule(notIn(s.bridges, oifname), accept),
			rule(translated, accept),
			rule(in(s.pairs, iifname, oifname), accept),
			rule(tcp, reset),
			rule(refuse),
		}},
		{name: "to-guest", rules: [][]statement{
			rule(known, accept),
			rule(invalid, drop),
			rule(translated, accept),
			rule(in(s.routed, oifname), accept),
			rule(drop),
		}},
		{name: "forward", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookForward, priority: 0, rules: [][]statement{
			rule(fromGuest, jump("from-guest")),
			rule(toGuest, jump("to-guest")),
		}},
		{name: "to-host", rules: slices.Concat(dnsRules(s), [][]statement{
			rule(ipv4, udp, toDHCP, drop), // it was read before; nobody is to refuse it
			rule(known, accept),
			rule(invalid, drop),
			rule(ipv4, is(l4proto, []byte{unix.IPPROTO_ICMP}), is(icmpType, []byte{8}), accept),
			rule(ipv6, is(l4proto, []byte{unix.IPPROTO_ICMPV6}), is(icmpType, []byte{icmp6Echo}), accept),
			rule(ipv6, is(l4proto, []byte{unix.IPPROTO_ICMPV6}), is(icmpType, []byte{icmp6Solicit}), accept),
			rule(ipv6, is(l4proto, []byte{unix.IPPROTO_ICMPV6}), is(icmpType, []byte{icmp6Advert}), accept),
			rule(tcp, toHost, reset),
			rule(toHost, refuse),
			rule(drop),
		})},
		{name: "input", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookInput, priority: 0, rules: [][]statement{
			rule(fromGuest, jump("to-host")),
		}},
	}
}

// dnsRules open port 53 of the guest's own gateway. They come before
// connection tracking's word, which would let a flood from one port pass.
func dnsRules(s *sets) [][]statement {
	return [][]statement{
		rule(udp, toDNS, ipv4, over(s.asked4, ip4Source, queriesPerSecond, queriesPerSecond), drop),
		rule(udp, toDNS, ipv6, over(s.asked6, ip6Source, queriesPerSecond, queriesPerSecond), drop),
		rule(udp, toDNS, toBridge, accept),
		rule(tcp, toDNS, toBridge, accept),
	}
}

// ICMPv6 types (RFC 4443, RFC 4861).
const (
	icmp6Echo         = 128
	icmp6RouterAdvert = 134
	icmp6Solicit      = 135
	icmp6Advert       = 136
)

// bridgeChains hold each guest's port to its own addresses. group is the
// link group that ports are born in, so that a port is under these rules
// before it has a single element, and after it lost them.
func bridgeChains(s *sets, group uint32) []chain {
	ether := func(proto uint16) statement { return is(etherType, binary.BigEndian.AppendUint16(nil, proto)) }
	icmp6 := func(kind byte, s ...statement) []statement {
		return slices.Concat([]statement{is(l4proto, []byte{unix.IPPROTO_ICMPV6}), is(icmpType, []byte{kind})}, s)
	}
	ip6 := [][]statement{
		rule(notIn(s.addresses6, iifname, etherSource, ip6Source), drop),
		icmp6(icmp6Solicit, pick(s.macs6, ndTarget), toMAC, accept),
		icmp6(icmp6Advert, in(s.addresses6, iifname, etherSource, ndTarget), accept),
		rule(udp, is(sport, port(547)), drop), // a DHCPv6 server
	}
	// Multicast listener queries and reports (130-132, 143) serve no one on a
	// bridge that floods multicast; router solicitations have no one to
	// answer them; advertisements and redirects are ours to send. A guest
	// can't hide these in fragments: RFC 6980 has receivers ignore them.
	for _, kind := range []byte{130, 131, 132, 133, icmp6RouterAdvert, icmp6Solicit, icmp6Advert, 137, 143} {
		ip6 = append(ip6, icmp6(kind, drop))
	}
	ip6 = append(ip6, rule(accept))

	return []chain{
		{name: "from-ip4", rules: [][]statement{
			rule(notIn(s.addresses4, iifname, etherSource, ip4Source), drop),
			rule(udp, is(sport, port(67)), drop), // a DHCP server
			// Requests to ours, which reads them on the bridge itself. They
			// don't concern other guests.
			rule(udp, toDHCP, over(s.shouts, iifname, shoutsPerSecond, shoutsPerSecond), drop),
			rule(is(ip4Source, unknown[:]), is(ip4Dest, everybody), udp, toDHCP, toHostEnd, accept),
			rule(is(ip4Source, unknown[:]), drop),
			rule(accept),
		}},
		{name: "from-arp", rules: [][]statement{
			rule(notIn(s.addresses4, iifname, etherSource, arpSource), drop),
			rule(notIn(s.addresses4, iifname, arpMAC, arpSource), drop),
			rule(is(arpOp, []byte{0, 1}), pick(s.macs4, arpTarget), toMAC, accept),
			rule(is(arpOp, []byte{0, 2}), is(pkttype, []byte{unix.PACKET_HOST}), accept),
			rule(is(arpOp, []byte{0, 2}), is(pkttype, []byte{unix.PACKET_OTHERHOST}), accept),
			rule(drop),
		}},
		{name: "from-ip6", rules: ip6},
		{name: "guest", rules: [][]statement{
			rule(is(pkttype, []byte{unix.PACKET_BROADCAST}), over(s.shouts, iifname, shoutsPerSecond, shoutsPerSecond), drop),
			rule(is(pkttype, []byte{unix.PACKET_MULTICAST}), over(s.shouts, iifname, shoutsPerSecond, shoutsPerSecond), drop),
			rule(ether(unix.ETH_P_IP), jump("from-ip4")),
			rule(ether(unix.ETH_P_IPV6), jump("from-ip6")),
			rule(ether(unix.ETH_P_ARP), jump("from-arp")),
			rule(drop), // spanning tree, VLAN tags, ...
		}},
		{name: "prerouting", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookPrerouting, priority: -300, rules: [][]statement{
			rule(is(iifgroup, binaryutil.NativeEndian.PutUint32(group)), jump("guest")),
		}},
	}
}
