package network

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/network/internal/nettest"
)

var (
	broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	allNodes  = net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
)

func ether(to, from net.HardwareAddr, kind uint16, payload []byte) []byte {
	return slices.Concat(to, from, binary.BigEndian.AppendUint16(nil, kind), payload)
}

func arp(op byte, senderMAC net.HardwareAddr, sender netip.Addr, targetMAC net.HardwareAddr, target netip.Addr) []byte {
	return slices.Concat([]byte{0, 1, 8, 0, 6, 4, 0, op}, senderMAC, sender.AsSlice(), targetMAC, target.AsSlice())
}

func checksum(b []byte) uint16 {
	var sum uint32
	if len(b)%2 != 0 {
		b = append(slices.Clone(b), 0)
	}
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// udp4 is a datagram without checksum in a packet (RFC 768, RFC 791).
func udp4(from, to netip.Addr, sport, dport uint16, data []byte) []byte {
	udp := binary.BigEndian.AppendUint16(nil, sport)
	udp = binary.BigEndian.AppendUint16(udp, dport)
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(data)))
	udp = append(append(udp, 0, 0), data...)
	ip := []byte{0x45, 0}
	ip = binary.BigEndian.AppendUint16(ip, uint16(20+len(udp)))
	ip = slices.Concat(append(ip, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0), from.AsSlice(), to.AsSlice())
	binary.BigEndian.PutUint16(ip[10:], checksum(ip))
	return append(ip, udp...)
}

func icmp6(from, to netip.Addr, kind byte, body []byte) []byte {
	icmp := append([]byte{kind, 0, 0, 0}, body...)
	pseudo := slices.Concat(from.AsSlice(), to.AsSlice(), []byte{0, 0, 0, byte(len(icmp)), 0, 0, 0, unix.IPPROTO_ICMPV6}, icmp)
	binary.BigEndian.PutUint16(icmp[2:], checksum(pseudo))
	return slices.Concat([]byte{0x60, 0, 0, 0, 0, byte(len(icmp)), unix.IPPROTO_ICMPV6, 255}, from.AsSlice(), to.AsSlice(), icmp)
}

func TestPortsPassOnlyTheirOwnAddresses(t *testing.T) { ends(t, passOnlyOwn) }

func passOnlyOwn(w *world) {
	t := w.T
	n := w.network(w.m, "default", api.NetworkSpec{})
	a, b := w.guest(w.m, n), w.guest(w.m, n)
	v4, v6 := w.m.Gateway(n)
	mark := []byte("mark of this test, sixteen or more")
	linkLocal := a.addrs()[2]
	nodes := netip.MustParseAddr("ff02::1")
	solicited := netip.MustParseAddr("ff02::1:ff00:1")
	ghost := netip.MustParseAddr("10.83.9.9")
	for _, test := range []struct {
		name   string
		frame  []byte
		mark   []byte
		passes bool
	}{
		{"own packet", ether(b.MAC, a.MAC, unix.ETH_P_IP, udp4(a.IPv4, b.IPv4, 9, 9, mark)), mark, true},
		{"own broadcast", ether(broadcast, a.MAC, unix.ETH_P_IP, udp4(a.IPv4, netip.MustParseAddr("255.255.255.255"), 9, 9, mark)), mark, true},
		{"another's MAC", ether(b.MAC, b.MAC, unix.ETH_P_IP, udp4(a.IPv4, b.IPv4, 9, 9, mark)), mark, false},
		{"another's address", ether(b.MAC, a.MAC, unix.ETH_P_IP, udp4(v4, b.IPv4, 9, 9, mark)), mark, false},
		{"no address", ether(broadcast, a.MAC, unix.ETH_P_IP, udp4(netip.IPv4Unspecified(), netip.MustParseAddr("255.255.255.255"), 68, 67, mark)), mark, false},
		{"loopback's address", ether(b.MAC, a.MAC, unix.ETH_P_IP, udp4(netip.MustParseAddr("127.0.0.1"), b.IPv4, 9, 9, mark)), mark, false},
		{"DHCP server", ether(broadcast, a.MAC, unix.ETH_P_IP, udp4(a.IPv4, netip.MustParseAddr("255.255.255.255"), 67, 68, mark)), mark, false},
		{"spanning tree", ether(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0}, a.MAC, 60, mark), mark, false},
		{"VLAN tag", ether(b.MAC, a.MAC, unix.ETH_P_8021Q, slices.Concat([]byte{0, 1, 8, 0}, udp4(a.IPv4, b.IPv4, 9, 9, mark))), mark, false},
		{"unknown protocol", ether(b.MAC, a.MAC, 0x88b5, mark), mark, false},
		{"ARP request", ether(broadcast, a.MAC, unix.ETH_P_ARP, arp(1, a.MAC, a.IPv4, make([]byte, 6), b.IPv4)), a.MAC, true},
		{"ARP request for nobody", ether(broadcast, a.MAC, unix.ETH_P_ARP, arp(1, a.MAC, a.IPv4, make([]byte, 6), ghost)), ghost.AsSlice(), false},
		{"ARP reply for the gateway", ether(b.MAC, a.MAC, unix.ETH_P_ARP, arp(2, a.MAC, v4, b.MAC, b.IPv4)), a.MAC, false},
		{"ARP reply with another's MAC", ether(b.MAC, a.MAC, unix.ETH_P_ARP, arp(2, b.MAC, a.IPv4, b.MAC, b.IPv4)), a.IPv4.AsSlice(), false},
		{"gratuitous ARP", ether(broadcast, a.MAC, unix.ETH_P_ARP, arp(2, a.MAC, v4, broadcast, v4)), a.MAC, false},
		{"own echo request", ether(b.MAC, a.MAC, unix.ETH_P_IPV6, icmp6(a.IPv6, b.IPv6, 128, mark)), mark, true},
		{"another's IPv6 address", ether(b.MAC, a.MAC, unix.ETH_P_IPV6, icmp6(v6, b.IPv6, 128, mark)), mark, false},
		{"router advertisement", ether(allNodes, a.MAC, unix.ETH_P_IPV6, icmp6(linkLocal, nodes, 134, slices.Concat(make([]byte, 12), mark))), mark, false},
		{"redirect", ether(b.MAC, a.MAC, unix.ETH_P_IPV6, icmp6(linkLocal, b.IPv6, 137, slices.Concat(make([]byte, 36), mark))), mark, false},
		{"listener query", ether(allNodes, a.MAC, unix.ETH_P_IPV6, icmp6(linkLocal, nodes, 130, slices.Concat(make([]byte, 20), mark))), mark, false},
		{"solicitation", ether(allNodes, a.MAC, unix.ETH_P_IPV6, icmp6(a.IPv6, solicited, 135, slices.Concat(make([]byte, 4), b.IPv6.AsSlice(), mark[:8]))), mark[:8], true},
		{"solicitation for nobody", ether(allNodes, a.MAC, unix.ETH_P_IPV6, icmp6(a.IPv6, solicited, 135, slices.Concat(make([]byte, 4), netip.MustParseAddr("fd00::99").AsSlice(), mark[:8]))), mark[:8], false},
		{"own advertisement", ether(b.MAC, a.MAC, unix.ETH_P_IPV6, icmp6(a.IPv6, b.IPv6, 136, slices.Concat(make([]byte, 4), a.IPv6.AsSlice(), mark[:8]))), mark[:8], true},
		{"advertisement for the gateway", ether(b.MAC, a.MAC, unix.ETH_P_IPV6, icmp6(a.IPv6, b.IPv6, 136, slices.Concat(make([]byte, 4), v6.AsSlice(), mark[:8]))), mark[:8], false},
	} {
		t.Run(test.name, func(t *testing.T) {
			out, in := a.Raw(t, "eth0"), b.Raw(t, "eth0")
			out.Send(t, test.frame)
			wait := 150 * time.Millisecond
			if test.passes {
				wait = nettest.Hang
			}
			if got := in.Receives(test.mark, wait); got != test.passes {
				t.Errorf("passed: %v", got)
			}
		})
	}
}

func TestTheGatewayAnswersEchoRequests(t *testing.T) { ends(t, echo) }

func echo(w *world) {
	t := w.T
	n := w.network(w.m, "default", api.NetworkSpec{})
	a := w.guest(w.m, n)
	_, v6 := w.m.Gateway(n)
	raw := a.Raw(t, "eth0")
	mark := []byte("echo of this test")
	raw.Send(t, ether(w.m.networks[n.ID].mac, a.MAC, unix.ETH_P_IPV6, icmp6(a.IPv6, v6, 128, slices.Concat(make([]byte, 4), mark))))
	reply := slices.Concat(v6.AsSlice(), a.IPv6.AsSlice(), []byte{129, 0})
	if !raw.Receives(reply, nettest.Hang) {
		t.Error("no answer")
	}
}

func TestLoopbackOfTheHostIsOutOfReach(t *testing.T) { ends(t, noLoopback) }

func noLoopback(w *world) {
	t := w.T
	n := w.network(w.m, "default", api.NetworkSpec{})
	a := w.guest(w.m, n)
	host := w.m.networks[n.ID]
	u, err := net.ListenPacket("udp4", "127.0.0.1:9999")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = u.Close() }()
	out := a.Raw(t, "eth0")
	out.Send(t, ether(host.mac, a.MAC, unix.ETH_P_IP, udp4(a.IPv4, netip.MustParseAddr("127.0.0.1"), 9, 9999, []byte("hello"))))
	_ = u.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	if n, _, err := u.ReadFrom(make([]byte, 10)); err == nil {
		t.Errorf("%d bytes of a guest came to 127.0.0.1", n)
	}
}

func TestAGuestCantFlood(t *testing.T) { ends(t, noFlood) }

func noFlood(w *world) {
	t := w.T
	n := w.network(w.m, "default", api.NetworkSpec{})
	a, b := w.guest(w.m, n), w.guest(w.m, n)
	out, in := a.Raw(t, "eth0"), b.Raw(t, "eth0")
	frame := ether(broadcast, a.MAC, unix.ETH_P_IP, udp4(a.IPv4, netip.MustParseAddr("255.255.255.255"), 9, 9, []byte("flood")))
	began := time.Now()
	for range 2000 {
		out.Send(t, frame)
	}
	most := 250 + int(220*time.Since(began).Seconds())
	received := 0
	for in.Receives([]byte("flood"), 100*time.Millisecond) {
		received++
	}
	if received < 100 || received > most {
		t.Errorf("%d of 2000 broadcasts came through, want at most %d; a port may send 200 a second", received, most)
	}
}
