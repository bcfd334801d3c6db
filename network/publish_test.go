package network

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/network/internal/nettest"
)

func (g *guest) forward(protocol string, host, port uint16) Forward {
	return Forward{HostPort: host, Protocol: protocol, GuestIP4: g.IPv4, GuestIP6: g.IPv6, GuestPort: port}
}

func TestPublishedPortsAnswerFromEverywhere(t *testing.T) {
	for _, calls := range []string{"0", "1"} {
		t.Run("bridge-nf-call-iptables="+calls, func(t *testing.T) {
			w := newWorld(t)
			for _, key := range []string{"net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"} {
				if _, err := readSysctl(key); err != nil && calls == "1" {
					t.Skip("br_netfilter is not loaded")
				} else if err == nil {
					if err := writeSysctl(key, calls); err != nil {
						t.Fatal(err)
					}
				}
			}
			testPublishedPorts(w)
		})
	}
	t.Run("of a machine", func(t *testing.T) {
		w := newWorld(t)
		w.taps = true
		testPublishedPorts(w)
	})
}

func testPublishedPorts(w *world) {
	t := w.T
	n := w.network(w.m, "default", api.NetworkSpec{})
	other := w.network(w.m, "other", api.NetworkSpec{})
	web, peer, far := w.guest(w.m, n), w.guest(w.m, n), w.guest(w.m, other)
	web.Answer(t, 80, "web")
	err := w.m.SetForwards(t.Context(), web.Instance, []Forward{web.forward("tcp", 8080, 80), web.forward("udp", 8080, 80)})
	if err != nil {
		t.Fatal(err)
	}
	host := nettest.Self(t)
	v4, v6 := w.m.Gateway(n)
	for _, test := range []struct {
		name   string
		from   *nettest.Namespace
		target string
		seen   string // the asker's address as the guest sees it; empty for any
	}{
		{"host by 127.0.0.1", host, "127.0.0.1", v4.String()},
		{"host by its address 4", host, hostIP4, hostIP4},
		{"host by its address 6", host, hostIP6, hostIP6},
		{"world 4", w.outside, hostIP4, worldIP4},
		{"world 6", w.outside, hostIP6, worldIP6},
		{"neighbour by the host's address 4", peer.Namespace, hostIP4, ""},
		{"neighbour by the host's address 6", peer.Namespace, hostIP6, ""},
		{"neighbour by the gateway", peer.Namespace, v4.String(), ""},
		{"itself by the host's address 4", web.Namespace, hostIP4, v4.String()},
		{"itself by the host's address 6", web.Namespace, hostIP6, v6.String()},
		{"guest of another network 4", far.Namespace, hostIP4, ""},
		{"guest of another network 6", far.Namespace, hostIP6, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, network := range []string{"tcp", "udp"} {
				got, err := test.from.Ask(network, at(test.target, 8080))
				if want := "web " + test.seen; err != nil || !strings.HasPrefix(got, want) {
					t.Errorf("%s: got %q, %v, want %q", network, got, err, want)
				}
			}
		})
	}
	t.Run("host by ::1 is refused, not left waiting", func(t *testing.T) {
		if got, err := host.Ask("tcp", at("::1", 8080)); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("got %q, %v", got, err)
		}
	})
	t.Run("gone after removal", func(t *testing.T) {
		if err := w.m.SetForwards(t.Context(), web.Instance, nil); err != nil {
			t.Fatal(err)
		}
		for _, network := range []string{"tcp", "udp"} {
			if got, err := w.outside.Ask(network, at(hostIP4, 8080)); err == nil {
				t.Errorf("%s: got %q", network, got)
			}
		}
	})
}

func TestPublishOnOneAddress(t *testing.T) {
	w := newWorld(t)
	n := w.network(w.m, "default", api.NetworkSpec{})
	a, b := w.guest(w.m, n), w.guest(w.m, n)
	a.Answer(t, 80, "a")
	b.Answer(t, 80, "b")
	host := nettest.Self(t)
	local := a.forward("tcp", 8080, 80)
	local.HostIP = netip.MustParseAddr("127.0.0.1")
	public := b.forward("tcp", 8080, 80)
	public.HostIP = netip.MustParseAddr(hostIP4)
	for instance, f := range map[string]Forward{a.Instance: local, b.Instance: public} {
		if err := w.m.SetForwards(t.Context(), instance, []Forward{f}); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		from   *nettest.Namespace
		target string
		want   string
	}{
		{host, "127.0.0.1", "a "}, {host, hostIP4, "b "}, {w.outside, hostIP4, "b "}, {w.outside, hostIP6, ""},
	} {
		if got, _ := test.from.Ask("tcp", at(test.target, 8080)); !strings.HasPrefix(got, test.want) || test.want == "" && got != "" {
			t.Errorf("%s: got %q, want %q", test.target, got, test.want)
		}
	}
	// A neighbour of the host on the wire sends to 127.0.0.1 through it.
	w.outside.Run("sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1")
	w.outside.Run("ip", "route", "add", "table", "100", "127.0.0.1", "via", hostIP4)
	w.outside.Run("ip", "rule", "add", "pref", "0", "to", "127.0.0.1", "dport", "8080", "lookup", "100")
	w.outside.Run("ip", "rule", "delete", "pref", "0", "lookup", "local")
	w.outside.Run("ip", "rule", "add", "pref", "10", "lookup", "local")
	if got, err := w.outside.Ask("tcp", at("127.0.0.1", 8080)); err == nil {
		t.Errorf("a port published on 127.0.0.1 answers the wire: %q", got)
	}
}

func TestPublishRefusesATakenPort(t *testing.T) {
	w := newWorld(t)
	n := w.network(w.m, "default", api.NetworkSpec{})
	a, b := w.guest(w.m, n), w.guest(w.m, n)
	l, err := net.Listen("tcp4", "127.0.0.1:8081")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	u, err := net.ListenPacket("udp6", "[::1]:8082")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = u.Close() }()
	if err := w.m.SetForwards(t.Context(), a.Instance, []Forward{a.forward("tcp", 8080, 80)}); err != nil {
		t.Fatal(err)
	}
	other := w.open("other")
	one := b.forward("tcp", 8080, 80)
	one.HostIP = netip.MustParseAddr(hostIP4)
	elsewhere := b.forward("tcp", 9000, 80)
	elsewhere.HostIP = netip.MustParseAddr("198.51.100.1")
	for _, test := range []struct {
		name  string
		m     *Manager
		f     Forward
		code  api.Code
		names string
	}{
		{"another instance", w.m, b.forward("tcp", 8080, 81), api.CodeConflict, a.Instance},
		{"another instance, one address", w.m, one, api.CodeConflict, a.Instance},
		{"a server", w.m, b.forward("tcp", 8081, 80), api.CodeConflict, "network.test (pid"},
		{"a datagram server", w.m, b.forward("udp", 8082, 80), api.CodeConflict, "network.test (pid"},
		{"another daemon", other, b.forward("tcp", 8080, 80), api.CodeConflict, "another daemon"},
		{"an address that isn't here", w.m, elsewhere, api.CodeInvalid, "198.51.100.1"},
		{"no port", w.m, b.forward("tcp", 0, 80), api.CodeInvalid, "1 to 65535"},
		{"no such protocol", w.m, b.forward("icmp", 1, 80), api.CodeInvalid, "neither tcp nor udp"},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := test.m.SetForwards(t.Context(), b.Instance, []Forward{b.forward("tcp", 8090, 80), test.f})
			if !api.IsCode(err, test.code) || !strings.Contains(err.Error(), test.names) {
				t.Fatalf("got %v", err)
			}
			// Nothing of the whole is left: the first can be had.
			l, err := net.Listen("tcp", ":8090")
			if err != nil {
				t.Fatal(err)
			}
			_ = l.Close()
		})
	}
	if l, err := net.Listen("tcp", ":8080"); err == nil {
		_ = l.Close()
		t.Error("a program can take a port that is published")
	}
	if err := w.m.SetForwards(t.Context(), b.Instance, []Forward{b.forward("udp", 8080, 80), b.forward("udp", 8081, 80)}); err != nil {
		t.Errorf("the other protocol: %v", err)
	}
}

func TestPublishTakesAPortWithOldConnections(t *testing.T) {
	w := newWorld(t)
	n := w.network(w.m, "default", api.NetworkSpec{})
	g := w.guest(w.m, n)
	l, err := net.Listen("tcp4", "127.0.0.1:8083")
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp4", "127.0.0.1:8083")
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_ = s.Close() // the first to close keeps the port in TIME-WAIT
	_ = c.Close()
	_ = l.Close()
	if err := w.m.SetForwards(t.Context(), g.Instance, []Forward{g.forward("tcp", 8083, 80)}); err != nil {
		t.Error(err)
	}
}

// A client that keeps sending from one port is a flow that connection
// tracking remembers for as long as it does.
func TestDatagramsFollowAPortToItsNewGuest(t *testing.T) {
	w := newWorld(t)
	n := w.network(w.m, "default", api.NetworkSpec{})
	a, b := w.guest(w.m, n), w.guest(w.m, n)
	a.Answer(t, 80, "a")
	b.Answer(t, 80, "b")
	var c net.Conn
	err := w.outside.Do(func() (err error) {
		c, err = net.Dial("udp", at(hostIP4, 8080))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	for _, g := range []*guest{a, b} {
		if err := w.m.SetForwards(t.Context(), a.Instance, []Forward{g.forward("udp", 8080, 80)}); err != nil {
			t.Fatal(err)
		}
		got, err := nettest.AskOn(c)
		want := "a "
		if g == b {
			want = "b "
		}
		if err != nil || !strings.HasPrefix(got, want) {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
}

func TestParsePortUser(t *testing.T) {
	for _, test := range []struct {
		line, address string
		state         int
	}{
		{"   0: 0100007F:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0", "127.0.0.1:8081", tcpListen},
		{"   1: 00000000000000000000000001000000:0035 00000000000000000000000000000000:0000 07 0:0 00:0 0 0 0 12 2 0 0", "[::1]:53", 7},
		{"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode", "", 0},
		{"", "", 0},
		{"0: 01007F:1F91 0:0 0A 0 0 0 0 0 1", "", 0},
	} {
		u, ok := parsePortUser(test.line)
		if ok != (test.address != "") || ok && (u.address.String() != test.address || u.state != test.state) {
			t.Errorf("%q: %+v, %v", test.line, u, ok)
		}
	}
}

func TestMeets(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want bool
	}{
		{"127.0.0.1", "0.0.0.0", true},
		{"0.0.0.0", "127.0.0.1", true},
		{"127.0.0.1", "127.0.0.2", false},
		{"::", "127.0.0.1", true},
		{"::", "0.0.0.0", true},
		{"0.0.0.0", "::", false},
		{"::1", "::", true},
		{"::ffff:127.0.0.1", "127.0.0.1", true},
		{"::1", "0.0.0.0", false},
	} {
		if got := meets(netip.MustParseAddr(test.a), netip.MustParseAddr(test.b)); got != test.want {
			t.Errorf("%s and %s: %v", test.a, test.b, got)
		}
	}
}
