package network

import (
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/network/internal/nettest"
)

// resolver answers A queries in a namespace with one address, NXDOMAIN for
// names below "missing", and cut short over UDP for "long".
func resolver(t *testing.T, ns *nettest.Namespace, address string, asked *atomic.Int64) {
	t.Helper()
	handler := dns.HandlerFunc(func(rw dns.ResponseWriter, q *dns.Msg) {
		asked.Add(1)
		r := new(dns.Msg).SetReply(q)
		name := q.Question[0].Name
		switch {
		case strings.HasSuffix(name, "missing."):
			r.Rcode = dns.RcodeNameError
		case strings.HasPrefix(name, "long.") && rw.RemoteAddr().Network() == "udp":
			r.Truncated = true
		default:
			for range max(1, len(name)/60) {
				r.Answer = append(r.Answer, &dns.A{
					Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60},
					A:   net.ParseIP("198.51.100.7"),
				})
			}
		}
		_ = rw.WriteMsg(r)
	})
	err := ns.Do(func() error {
		p, err := net.ListenPacket("udp", address)
		if err != nil {
			return err
		}
		l, err := net.Listen("tcp", address)
		if err != nil {
			return err
		}
		for _, s := range []*dns.Server{{PacketConn: p, Handler: handler}, {Listener: l, Handler: handler}} {
			go func() { _ = s.ActivateAndServe() }()
			t.Cleanup(func() { _ = s.Shutdown() })
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// lookup asks server from ns and returns the answer in short.
func lookup(ns *nettest.Namespace, network, server, name string, kind uint16) (answer []string, rcode string, err error) {
	err = ns.Do(func() error {
		q := new(dns.Msg).SetQuestion(name, kind)
		c := dns.Client{Net: network, Timeout: 3 * time.Second}
		r, _, err := c.Exchange(q, net.JoinHostPort(server, "53"))
		if err != nil {
			return err
		}
		rcode = dns.RcodeToString[r.Rcode]
		for _, rr := range r.Answer {
			fields := strings.Fields(rr.String())
			answer = append(answer, fields[len(fields)-1])
		}
		return nil
	})
	return answer, rcode, err
}

func TestGuestsResolveNames(t *testing.T) { ends(t, resolveNames) }

func resolveNames(w *world) {
	t := w.T
	var asked atomic.Int64
	resolver(t, w.outside, worldIP4+":53", &asked)
	n := w.network(w.m, "default", api.NetworkSpec{})
	other := w.network(w.m, "other", api.NetworkSpec{Domain: "far.test"})
	g, far := w.guest(w.m, n), w.guest(w.m, other)
	w.m.SetName(n.ID, "web", g.IPv4, g.IPv6)
	w.m.SetName(n.ID, "gone", netip.MustParseAddr("10.83.0.99"))
	w.m.DeleteName(n.ID, "gone")
	w.m.SetName(other.ID, "db", far.IPv4)
	ptr4, _ := dns.ReverseAddr(g.IPv4.String())
	ptr6, _ := dns.ReverseAddr(g.IPv6.String())
	nobody, _ := dns.ReverseAddr("10.83.0.77")
	outside, _ := dns.ReverseAddr("203.0.113.9")
	v4, v6 := w.m.Gateway(n)
	for _, test := range []struct {
		name  string
		kind  uint16
		want  []string
		rcode string
	}{
		{"web.", dns.TypeA, []string{g.IPv4.String()}, "NOERROR"},
		{"web.cleave.", dns.TypeAAAA, []string{g.IPv6.String()}, "NOERROR"},
		{"WEB.Cleave.", dns.TypeA, []string{g.IPv4.String()}, "NOERROR"},
		{"web.cleave.", dns.TypeTXT, nil, "NOERROR"},
		{"gone.cleave.", dns.TypeA, nil, "NXDOMAIN"},
		{"gone.", dns.TypeA, nil, "NXDOMAIN"},
		{"db.cleave.", dns.TypeA, nil, "NXDOMAIN"},
		{"cleave.", dns.TypeA, nil, "NOERROR"},
		{"localhost.", dns.TypeA, []string{"127.0.0.1"}, "NOERROR"},
		{ptr4, dns.TypePTR, []string{"web.cleave."}, "NOERROR"},
		{ptr6, dns.TypePTR, []string{"web.cleave."}, "NOERROR"},
		{nobody, dns.TypePTR, nil, "NXDOMAIN"},
		{"example.org.", dns.TypeA, []string{"198.51.100.7"}, "NOERROR"},
		{"long.example.org.", dns.TypeA, []string{"198.51.100.7"}, "NOERROR"},
		{"x.missing.", dns.TypeA, nil, "NXDOMAIN"},
		{outside, dns.TypeA, []string{"198.51.100.7"}, "NOERROR"},
		{"example.org.", dns.TypeAXFR, nil, "REFUSED"},
	} {
		t.Run(test.name+dns.TypeToString[test.kind], func(t *testing.T) {
			for _, server := range []netip.Addr{v4, v6} {
				for _, network := range []string{"udp", "tcp"} {
					got, rcode, err := lookup(g.Namespace, network, server.String(), test.name, test.kind)
					if diff := cmp.Diff(test.want, got); diff != "" || rcode != test.rcode || err != nil {
						t.Errorf("%s to %s: %s %v %s", network, server, rcode, err, diff)
					}
				}
			}
		})
	}
	t.Run("the host gets names but no recursion", func(t *testing.T) {
		before := asked.Load()
		host := nettest.Self(t)
		if got, _, err := lookup(host, "udp", v4.String(), "web.cleave.", dns.TypeA); err != nil || len(got) != 1 {
			t.Errorf("got %v, %v", got, err)
		}
		if _, rcode, _ := lookup(host, "udp", v4.String(), "example.org.", dns.TypeA); rcode != "REFUSED" || asked.Load() != before {
			t.Errorf("a query of the host: %s", rcode)
		}
	})
	t.Run("names are kept when the network is ensured again", func(t *testing.T) {
		if _, err := w.m.Ensure(t.Context(), n); err != nil {
			t.Fatal(err)
		}
		if got, _, err := lookup(g.Namespace, "udp", v4.String(), "web.", dns.TypeA); err != nil || len(got) != 1 {
			t.Errorf("got %v, %v", got, err)
		}
	})
}

func TestResolversAreReadAnewAndTriedInTurn(t *testing.T) {
	w := newWorld(t)
	var asked atomic.Int64
	resolver(t, w.outside, at(worldIP6, 53), &asked)
	n := w.network(w.m, "default", api.NetworkSpec{})
	g := w.guest(w.m, n)
	v4, _ := w.m.Gateway(n)
	query := func(want string) {
		t.Helper()
		if _, rcode, err := lookup(g.Namespace, "udp", v4.String(), "example.org.", dns.TypeA); rcode != want || err != nil {
			t.Errorf("got %s, %v, want %s", rcode, err, want)
		}
	}
	query("SERVFAIL") // nobody serves at worldIP4
	// The gateway itself, in the host's file, would be a loop.
	content := "nameserver " + v4.String() + "\nnameserver " + worldIP4 + "\noptions x\nnameserver " + worldIP6 + "\n"
	if err := os.WriteFile(w.m.resolv, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	query("NOERROR")
	if err := os.WriteFile(w.m.resolv, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	query("SERVFAIL")
}

func TestResolvConfNamesTheGateway(t *testing.T) {
	n := &api.Network{Status: api.NetworkStatus{IPv4: "10.83.0.1/20", IPv6: "fd00::1/64"}}
	if got, want := ResolvConf(n), "nameserver 10.83.0.1\nnameserver fd00::1\nsearch cleave\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := ResolvConf(&api.Network{}); got != "" {
		t.Errorf("without gateway: %q", got)
	}
}
