package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/network/internal/nettest"
)

// at is an address with a port, as text.
func at(host string, port int) string { return net.JoinHostPort(host, fmt.Sprint(port)) }

func TestGuestsReachEachOtherAndTheWorldButNotOtherNetworks(t *testing.T) { ends(t, reach) }

func reach(w *world) {
	t := w.T
	n := w.network(w.m, "default", api.NetworkSpec{})
	other := w.network(w.m, "other", api.NetworkSpec{})
	a, b, c := w.guest(w.m, n), w.guest(w.m, n), w.guest(w.m, other)
	b.Answer(t, 80, "b")
	c.Answer(t, 80, "c")
	w.outside.Answer(t, 80, "world")
	v4, v6 := w.m.Gateway(n)
	far4, far6 := w.m.Gateway(other)
	host := nettest.Self(t)
	host.Answer(t, 22, "host") // what guests must not reach
	for _, test := range []struct {
		name, target, want string
		port               int
	}{
		{"neighbour4", b.IPv4.String(), "b " + a.IPv4.String(), 80},
		{"neighbour6", b.IPv6.String(), "b " + a.IPv6.String(), 80},
		{"world4 behind the host's address", worldIP4, "world " + hostIP4, 80},
		{"world6 behind the host's address", worldIP6, "world " + hostIP6, 80},
		{"other network 4", c.IPv4.String(), "", 80},
		{"other network 6", c.IPv6.String(), "", 80},
		{"gateway's other ports 4", v4.String(), "", 22},
		{"gateway's other ports 6", v6.String(), "", 22},
		{"host's own address 4", hostIP4, "", 22},
		{"host's own address 6", hostIP6, "", 22},
		{"other network's gateway 4", far4.String(), "", 53},
		{"other network's gateway 6", far6.String(), "", 53},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, network := range []string{"tcp", "udp"} {
				got, err := a.Ask(network, at(test.target, test.port))
				if got != test.want {
					t.Errorf("%s to %s: got %q, %v, want %q", network, test.target, got, err, test.want)
				}
				if late := net.Error(nil); test.want == "" && network == "tcp" && errors.As(err, &late) && late.Timeout() {
					t.Errorf("%s to %s hung instead of being refused", network, test.target)
				}
			}
		})
	}
}

func TestTheWorldReachesOnlyRoutedNetworks(t *testing.T) {
	w := newWorld(t)
	no := false
	n := w.network(w.m, "default", api.NetworkSpec{})
	routed := w.network(w.m, "routed", api.NetworkSpec{NAT: &no})
	a, b := w.guest(w.m, n), w.guest(w.m, routed)
	w.outside.Answer(t, 80, "world")
	for _, g := range []*guest{a, b} {
		g.Answer(t, 80, "guest")
		v4, v6 := gateways(n)
		if g == b {
			v4, v6 = gateways(routed)
		}
		w.outside.Run("ip", "route", "add", v4.Masked().String(), "via", hostIP4)
		w.outside.Run("ip", "-6", "route", "add", v6.Masked().String(), "via", hostIP6)
	}
	for _, ip := range []netip.Addr{b.IPv4, b.IPv6} {
		if got, err := w.outside.Ask("tcp", at(ip.String(), 80)); !strings.HasPrefix(got, "guest ") {
			t.Errorf("ask %s: %q, %v", ip, got, err)
		}
		target := worldIP4
		if ip.Is6() {
			target = worldIP6
		}
		if got, err := b.Ask("tcp", at(target, 80)); got != "world "+ip.String() {
			t.Errorf("from a network without NAT: %q, %v", got, err)
		}
	}
	for _, ip := range []netip.Addr{a.IPv4, a.IPv6} {
		if got, err := w.outside.Ask("tcp", at(ip.String(), 80)); err == nil {
			t.Errorf("ask %s from outside: %q", ip, got)
		}
	}
}
