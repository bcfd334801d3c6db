package dns

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestOneGuestCantTakeAllConnections(t *testing.T) {
	serve(t)
	for i := range mostConnsOne + 1 {
		c := dial(t, "tcp")
		err := c.WriteMsg(new(dns.Msg).SetQuestion("web.", dns.TypeA))
		if err == nil {
			_, err = c.ReadMsg()
		}
		if (err == nil) != (i < mostConnsOne) {
			t.Errorf("connection %d: %v", i, err)
		}
	}
}

func TestOneGuestCantTakeAllPlaces(t *testing.T) {
	g := gate{all: 3, one: 2, by: map[netip.Addr]int{}}
	other := gateway
	for i, step := range []struct {
		source netip.Addr
		enters bool
	}{{web, true}, {web, true}, {web, false}, {other, true}, {other, false}} {
		if g.enter(step.source) != step.enters {
			t.Errorf("step %d: %+v isn't so", i, step)
		}
	}
	g.leave(web)
	if !g.enter(other) || g.count != 3 {
		t.Errorf("a place that was left isn't free: %+v", &g)
	}
}

// blackHole is a resolver that takes queries and never answers.
func blackHole(t *testing.T, address string) {
	t.Helper()
	p, err := net.ListenPacket("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
}

// TestSlowResolversDelayNobodyElse asks resolvers that would be waited for
// for an hour: whatever is held up by them never comes.
func TestSlowResolversDelayNobodyElse(t *testing.T) {
	blackHole(t, "127.2.0.1:53")
	s := unserved(t, "127.2.0.1")
	s.upstream.tryTime, s.upstream.askTime = time.Hour, time.Hour
	begin(t, s)
	c := dial(t, "udp")
	for range 10 * mostForwardsOne {
		if err := c.WriteMsg(new(dns.Msg).SetQuestion("slow.example.org.", dns.TypeA)); err != nil {
			t.Fatal(err)
		}
	}
	if r := ask(t, "udp", new(dns.Msg).SetQuestion("web.", dns.TypeA)); len(r.Answer) != 1 {
		t.Errorf("got %v", r)
	}
	await(t, "as many queries being asked as one guest may have", func() bool {
		s.limits.forwards.mu.Lock()
		defer s.limits.forwards.mu.Unlock()
		return s.limits.forwards.count == mostForwardsOne
	})
	s.Close() // which the open queries must not delay
}

// TestAnswersThatCantLeaveHoldUpNobody has a queue take answers and let none
// out, as that of a guest with a limited rate does for a while.
func TestAnswersThatCantLeaveHoldUpNobody(t *testing.T) {
	lo := netlink.QdiscAttrs{LinkIndex: 1, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: gateway.AsSlice()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	err = netlink.QdiscAdd(&netlink.Tbf{QdiscAttrs: lo, Rate: 1000, Buffer: netlink.Xmittime(1000, 2000), Limit: 1 << 30})
	if err != nil {
		t.Skipf("needs a queue that is slow: %v", err)
	}
	defer func() { _ = netlink.QdiscDel(&netlink.Tbf{QdiscAttrs: lo}) }()
	p, err := newPackets(c)
	if err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, udpSize)
	to := &unix.SockaddrInet4{Port: 1000, Addr: web.As4()}
	for range 2 * socketMemory / len(answer) {
		p.send(answer, to)
	}
}
