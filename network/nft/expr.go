package nft

import (
	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// A statement is a part of a rule, such as a match or a verdict. Statements
// don't share registers: each starts from the first one.
type statement []expr.Any

// reg0 is the first of the sixteen 32-bit registers.
const reg0 = unix.NFT_REG32_00

// A field is something of a packet that can be loaded into registers.
type field struct {
	bytes uint32
	load  func(reg uint32) expr.Any
}

func meta(key expr.MetaKey, n uint32) field {
	return field{n, func(reg uint32) expr.Any { return &expr.Meta{Key: key, Register: reg} }}
}

func payload(base expr.PayloadBase, offset, n uint32) field {
	return field{n, func(reg uint32) expr.Any {
		return &expr.Payload{DestRegister: reg, Base: base, Offset: offset, Len: n}
	}}
}

const (
	link      = expr.PayloadBaseLLHeader
	network   = expr.PayloadBaseNetworkHeader
	transport = expr.PayloadBaseTransportHeader
)

// Fields by the names that nft(8) gives them.
var (
	iifname  = meta(expr.MetaKeyIIFNAME, unix.IFNAMSIZ)
	oifname  = meta(expr.MetaKeyOIFNAME, unix.IFNAMSIZ)
	iifgroup = meta(expr.MetaKeyIIFGROUP, 4)
	nfproto  = meta(expr.MetaKeyNFPROTO, 1)
	l4proto  = meta(expr.MetaKeyL4PROTO, 1)
	pkttype  = meta(expr.MetaKeyPKTTYPE, 1)

	etherSource = payload(link, 6, 6)
	etherType   = payload(link, 12, 2)

	ip4Source = payload(network, 12, 4)
	ip4Dest   = payload(network, 16, 4)
	ip4Dest8  = payload(network, 16, 1)
	ip4Src8   = payload(network, 12, 1)
	ip6Source = payload(network, 8, 16)
	ip6Dest   = payload(network, 24, 16)

	// ARP for IPv4 over Ethernet (RFC 826).
	arpOp     = payload(network, 6, 2)
	arpMAC    = payload(network, 8, 6)
	arpSource = payload(network, 14, 4)
	arpTarget = payload(network, 24, 4)

	sport    = payload(transport, 0, 2)
	dport    = payload(transport, 2, 2)
	icmpType = payload(transport, 0, 1)
	ndTarget = payload(transport, 8, 16) // RFC 4861 §4.3, §4.4

	ctState  = field{4, func(reg uint32) expr.Any { return &expr.Ct{Key: expr.CtKeySTATE, Register: reg} }}
	ctStatus = field{4, func(reg uint32) expr.Any { return &expr.Ct{Key: expr.CtKeySTATUS, Register: reg} }}

	// fibDest is the type of the destination's route; fibDestIn the same on
	// the interface that the packet came in by.
	fibDest = field{4, func(reg uint32) expr.Any {
		return &expr.Fib{Register: reg, ResultADDRTYPE: true, FlagDADDR: true}
	}}
	fibDestIn = field{4, func(reg uint32) expr.Any {
		return &expr.Fib{Register: reg, ResultADDRTYPE: true, FlagDADDR: true, FlagIIF: true}
	}}
)

// load puts fields into registers side by side, as a concatenated key.
func load(fields ...field) statement {
	var s statement
	reg := uint32(reg0)
	for _, f := range fields {
		s = append(s, f.load(reg))
		reg += (f.bytes + 3) / 4
	}
	return s
}

func is(f field, value []byte) statement {
	return append(load(f), &expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: value})
}

// has matches when a bit of mask is set.
func has(f field, mask uint32) statement {
	return append(load(f),
		&expr.Bitwise{
			SourceRegister: reg0, DestRegister: reg0, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(mask), Xor: make([]byte, 4),
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg0, Data: make([]byte, 4)})
}

func in(set *nftables.Set, key ...field) statement {
	return append(load(key...), &expr.Lookup{SourceRegister: reg0, SetName: set.Name, SetID: set.ID})
}

func notIn(set *nftables.Set, key ...field) statement {
	return append(load(key...), &expr.Lookup{SourceRegister: reg0, SetName: set.Name, SetID: set.ID, Invert: true})
}

// pick replaces the key by the map's value, in the registers from reg0; a
// key that the map lacks ends the rule.
func pick(m *nftables.Set, key ...field) statement {
	return append(load(key...), &expr.Lookup{
		SourceRegister: reg0, DestRegister: reg0, IsDestRegSet: true, SetName: m.Name, SetID: m.ID,
	})
}

// over matches when a key comes more often than rate times a second.
func over(set *nftables.Set, key field, rate uint64, burst uint32) statement {
	return append(load(key), &expr.Dynset{
		SrcRegKey: reg0, SetName: set.Name, SetID: set.ID, Operation: unix.NFT_DYNSET_OP_UPDATE,
		Exprs: []expr.Any{&expr.Limit{
			Type: expr.LimitTypePkts, Rate: rate, Unit: expr.LimitTimeSecond, Burst: burst, Over: true,
		}},
	})
}

// dnat sends the packet to the address and port that pick left.
func dnat(family uint32, addrBytes uint32) statement {
	return statement{&expr.NAT{
		Type: expr.NATTypeDestNAT, Family: family,
		RegAddrMin: reg0, RegProtoMin: reg0 + addrBytes/4, Specified: true,
	}}
}

// toMAC makes the address that pick left the frame's destination.
var toMAC = statement{&expr.Payload{
	OperationType: expr.PayloadWrite, SourceRegister: reg0, Base: link, Offset: 0, Len: 6,
}}

// toHostEnd makes the host's end of the port that the frame came in by its
// destination. That has the guest's MAC, but for the first byte.
var toHostEnd = append(load(payload(link, 7, 5)),
	&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: reg0, Base: link, Offset: 1, Len: 5},
	&expr.Immediate{Register: reg0, Data: []byte{0xfe}},
	&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: reg0, Base: link, Offset: 0, Len: 1},
)

var (
	accept     = statement{&expr.Verdict{Kind: expr.VerdictAccept}}
	drop       = statement{&expr.Verdict{Kind: expr.VerdictDrop}}
	masquerade = statement{&expr.Masq{}}
	// reset and refuse answer that it is forbidden, so that nobody waits in
	// vain. The kernel sends ICMP errors at a limited rate, and so not always.
	reset  = statement{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}
	refuse = statement{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}}
)

func jump(chain string) statement {
	return statement{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}

// Matches that several rules begin with.
var (
	ipv4 = is(nfproto, []byte{unix.NFPROTO_IPV4})
	ipv6 = is(nfproto, []byte{unix.NFPROTO_IPV6})
	tcp  = is(l4proto, []byte{unix.IPPROTO_TCP})
	udp  = is(l4proto, []byte{unix.IPPROTO_UDP})

	known   = has(ctState, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED)
	invalid = has(ctState, expr.CtStateBitINVALID)
	// translated matches connections whose destination was replaced (IPS_DST_NAT).
	translated = has(ctStatus, 1<<5)

	toHost   = is(fibDest, binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL))
	toBridge = is(fibDestIn, binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL))
	toDNS    = is(dport, port(53))
	toDHCP   = is(dport, port(67))
)

func port(n uint16) []byte { return binaryutil.BigEndian.PutUint16(n) }
