package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/cleave-project/cleave/network/internal/nettest"
)

func TestMain(m *testing.M) { nettest.Main(m) }

// The test's own loopback stands for a network: the server on one address,
// guests on others.
var (
	gateway = netip.MustParseAddr("127.1.0.1")
	web     = netip.MustParseAddr("127.1.0.2")
)

func sampleZone() Zone {
	return Zone{ID: "n", Domain: "cleave", Gateways: []netip.Addr{gateway}, Subnets: []netip.Prefix{netip.MustParsePrefix("127.1.0.0/24")}}
}

// patience is how long a test waits for what must come: it ends a test that
// hangs, and says nothing of how fast a machine must be.
const patience = 2 * time.Minute

// await waits for a condition that nothing announces.
func await(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never %s", what)
		}
	}
}

// unserved makes a server whose resolver is at the given addresses.
func unserved(t testing.TB, resolvers ...string) *Server {
	t.Helper()
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	var content strings.Builder
	for _, r := range resolvers {
		fmt.Fprintln(&content, "nameserver", r)
	}
	if err := os.WriteFile(conf, []byte(content.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	before := runtime.NumGoroutine()
	s := New(Options{ResolvConf: conf})
	t.Cleanup(func() {
		s.Close()
		// Those that have said they are done have still to go.
		await(t, fmt.Sprintf("down to the %d goroutines of before", before), func() bool {
			return runtime.NumGoroutine() <= before
		})
	})
	return s
}

// begin has s serve the sample zone.
func begin(t testing.TB, s *Server) {
	t.Helper()
	if err := s.Serve(sampleZone()); err != nil {
		t.Fatal(err)
	}
	s.SetName("n", "web", []netip.Addr{web})
}

// serve starts a server whose resolver is at the given addresses.
func serve(t testing.TB, resolvers ...string) *Server {
	t.Helper()
	s := unserved(t, resolvers...)
	begin(t, s)
	return s
}

// dial connects to the server as a guest.
func dial(t testing.TB, network string) *dns.Conn {
	t.Helper()
	var from net.Addr = &net.UDPAddr{IP: web.AsSlice()}
	if network == "tcp" {
		from = &net.TCPAddr{IP: web.AsSlice()}
	}
	d := net.Dialer{LocalAddr: from, Timeout: patience}
	c, err := d.Dial(network, netip.AddrPortFrom(gateway, 53).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return &dns.Conn{Conn: c}
}

// ask asks once, or over UDP again as resolvers do: datagrams may be lost.
func ask(t testing.TB, network string, q *dns.Msg) *dns.Msg {
	t.Helper()
	c := dial(t, network)
	c.UDPSize = dns.MaxMsgSize
	for end := time.Now().Add(patience); ; {
		if err := c.WriteMsg(q); err != nil {
			t.Fatal(err)
		}
		if network == "udp" {
			_ = c.SetReadDeadline(time.Now().Add(tryTime))
		}
		r, err := c.ReadMsg()
		if err == nil {
			return r
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) || time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

func TestProtocolErrorsAreAnsweredAsStandardsSay(t *testing.T) {
	serve(t)
	query := func(change func(*dns.Msg)) *dns.Msg {
		q := new(dns.Msg).SetQuestion("web.", dns.TypeA)
		change(q)
		return q
	}
	for _, test := range []struct {
		name  string
		query *dns.Msg
		rcode int
		edns  bool
	}{
		{"a query", query(func(*dns.Msg) {}), dns.RcodeSuccess, false},
		{"with EDNS", query(func(q *dns.Msg) { q.SetEdns0(4096, false) }), dns.RcodeSuccess, true},
		{"unknown EDNS version", query(func(q *dns.Msg) { q.SetEdns0(4096, false); q.IsEdns0().SetVersion(1) }), dns.RcodeBadVers, true},
		{"no question", query(func(q *dns.Msg) { q.Question = nil }), dns.RcodeFormatError, false},
		{"two questions", query(func(q *dns.Msg) { q.Question = append(q.Question, q.Question[0]) }), dns.RcodeFormatError, false},
		{"update", query(func(q *dns.Msg) { q.Opcode = dns.OpcodeUpdate }), dns.RcodeNotImplemented, false},
		{"other class", query(func(q *dns.Msg) { q.Question[0].Qclass = dns.ClassCHAOS }), dns.RcodeRefused, false},
		{"zone transfer", query(func(q *dns.Msg) { q.Question[0].Qtype = dns.TypeAXFR }), dns.RcodeRefused, false},
		{"outside, without resolvers", query(func(q *dns.Msg) { q.Question[0].Name = "example.org." }), dns.RcodeServerFailure, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, network := range []string{"udp", "tcp"} {
				r := ask(t, network, test.query)
				if r.Rcode != test.rcode || r.Id != test.query.Id || !r.Response || (r.IsEdns0() != nil) != test.edns {
					t.Errorf("%s: %v", network, r)
				}
			}
		})
	}
}

func TestWhatIsNoQueryIsNotAnswered(t *testing.T) {
	serve(t)
	response, err := new(dns.Msg).SetQuestion("web.", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	response[2] |= 0x80
	for name, b := range map[string][]byte{"response": response, "short": {1, 2, 3}, "nothing": {}} {
		c := dial(t, "udp")
		if _, err := c.Conn.Write(b); err != nil {
			t.Fatal(err)
		}
		// One socket's datagrams are answered in their order.
		q := new(dns.Msg).SetQuestion("web.", dns.TypeA)
		if err := c.WriteMsg(q); err != nil {
			t.Fatal(err)
		}
		if r, err := c.ReadMsg(); err != nil || r.Id != q.Id || len(r.Answer) != 1 {
			t.Errorf("%s is answered: %v, %v", name, r, err)
		}
	}
}

func TestLargeAnswersAreCutForDatagrams(t *testing.T) {
	s := serve(t)
	var many []netip.Addr
	for a := netip.MustParseAddr("10.0.0.1"); len(many) < 200; a = a.Next() {
		many = append(many, a)
	}
	s.SetName("n", "many", many)
	for _, test := range []struct {
		network string
		edns    uint16
		most    int
		cut     bool
	}{{"udp", 0, 512, true}, {"udp", 4096, udpSize, true}, {"udp", 100, 512, true}, {"tcp", 0, 65535, false}} {
		q := new(dns.Msg).SetQuestion("many.", dns.TypeA)
		if test.edns > 0 {
			q.SetEdns0(test.edns, false)
		}
		r := ask(t, test.network, q)
		r.Compress = true
		if r.Truncated != test.cut || r.Len() > test.most || !test.cut && len(r.Answer) != 200 {
			t.Errorf("%+v: cut %v, %d answers, %d bytes", test, r.Truncated, len(r.Answer), r.Len())
		}
	}
}

func TestManyQueriesOnOneConnection(t *testing.T) {
	serve(t)
	c := dial(t, "tcp")
	for i := range mostQueries + 1 {
		q := new(dns.Msg).SetQuestion("web.", dns.TypeA)
		if err := c.WriteMsg(q); err != nil {
			t.Fatal(err)
		}
		_, err := c.ReadMsg()
		if i < mostQueries && err != nil || i == mostQueries && err == nil {
			t.Fatalf("query %d: %v", i, err)
		}
	}
}

func TestAnswersToOtherQuestionsAreNotBelieved(t *testing.T) {
	p, err := net.ListenPacket("udp", "127.2.0.2:53")
	if err != nil {
		t.Fatal(err)
	}
	server := &dns.Server{PacketConn: p, Handler: dns.HandlerFunc(func(rw dns.ResponseWriter, q *dns.Msg) {
		r := new(dns.Msg).SetReply(q)
		r.Question[0].Name = "other.example.org."
		_ = rw.WriteMsg(r)
	})}
	go func() { _ = server.ActivateAndServe() }()
	t.Cleanup(func() { _ = server.Shutdown() })
	u := &upstream{
		path: filepath.Join(t.TempDir(), "none"), ours: func(netip.Addr) bool { return false },
		tryTime: patience, askTime: patience,
	}
	u.servers = []netip.Addr{netip.MustParseAddr("127.2.0.2")}
	r := u.ask(context.Background(), new(dns.Msg).SetQuestion("example.org.", dns.TypeA))
	if r.Rcode != dns.RcodeServerFailure {
		t.Errorf("got %v", r)
	}
}

func TestServeSurvivesAnAddressThatComesLate(t *testing.T) {
	s := serve(t)
	z := Zone{ID: "late", Domain: "late", Gateways: []netip.Addr{netip.MustParseAddr("10.83.0.1"), netip.MustParseAddr("fd00::1")}}
	for range 2 {
		if err := s.Serve(z); err != nil {
			t.Fatal(err)
		}
	}
	s.Stop("late")
	s.Stop("late")
}

func TestReverse(t *testing.T) {
	for _, test := range []struct{ name, want string }{
		{"1.0.83.10.in-addr.arpa", "10.83.0.1"},
		{"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa", "fd00::1"},
		{"83.10.in-addr.arpa", ""},
		{"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.g.ip6.arpa", ""},
		{"1.2.ip6.arpa", ""},
		{"web", ""},
	} {
		got, ok := reverse(test.name)
		if ok != (test.want != "") || ok && got.String() != test.want {
			t.Errorf("%s: %v, %v", test.name, got, ok)
		}
	}
}

func TestParseResolvConf(t *testing.T) {
	content := "# nameserver 1.1.1.1\nsearch x\nnameserver 192.0.2.1\n\tnameserver  fe80::1%eth0 \nnameserver web\nnameserver 192.0.2.1\nnameserver\n"
	want := []string{"192.0.2.1", "fe80::1%eth0"}
	var got []string
	for _, a := range ParseResolvConf([]byte(content)) {
		got = append(got, a.String())
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// FuzzBegin feeds arbitrary datagrams: every reply must fit and parse.
func FuzzBegin(f *testing.F) {
	for _, name := range []string{"web.", "1.0.1.127.in-addr.arpa.", "example.org.", "."} {
		q := new(dns.Msg).SetQuestion(name, dns.TypeA)
		q.SetEdns0(100, true)
		b, err := q.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	z := newZone()
	z.configure(sampleZone())
	z.setName("web", []netip.Addr{web, netip.MustParseAddr("fd00::2")})
	h := &handler{zone: z, server: New(Options{})}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, source := range []netip.Addr{web, gateway, {}} {
			q, r := h.begin(b, source)
			if r == nil {
				continue
			}
			for _, size := range []int{dns.MinMsgSize, dns.MaxMsgSize} {
				packed, err := finish(q, r, size)
				if err != nil {
					continue // a name that can't be written again; nothing is sent
				}
				if len(packed) > max(size, len(b)+64) {
					t.Fatalf("%d bytes in answer to %d", len(packed), len(b))
				}
				if err := new(dns.Msg).Unpack(packed); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

func FuzzParseResolvConf(f *testing.F) {
	f.Add([]byte("nameserver 192.0.2.1\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, a := range ParseResolvConf(b) {
			if !a.IsValid() {
				t.Fatal("an invalid address")
			}
		}
	})
}
