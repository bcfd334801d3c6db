package dhcp

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

var (
	station = net.HardwareAddr{2, 0, 0, 0, 0, 7}
	address = netip.MustParseAddr("10.83.0.7")
)

func testListener() *listener {
	s := New(Options{Find: func(_ string, mac net.HardwareAddr) (Lease, bool) {
		return Lease{Addr: address, Hostname: "web", MTU: 1400}, mac.String() == station.String()
	}})
	return &listener{server: s, network: Network{ID: "n", Gateway: netip.MustParsePrefix("10.83.0.1/24"), Domain: "cleave"}}
}

// request wraps a message as a client's packet.
func request(t testing.TB, kind dhcpv4.MessageType, m ...dhcpv4.Modifier) []byte {
	t.Helper()
	q, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithHwAddr(station), dhcpv4.WithMessageType(kind)}, m...)...)
	if err != nil {
		t.Fatal(err)
	}
	p := packet(netip.IPv4Unspecified(), netip.AddrFrom4([4]byte{255, 255, 255, 255}), q.ToBytes())
	p[20], p[21], p[22], p[23] = 0, clientPort, 0, serverPort
	return p
}

// reply reads an answer; nil for none.
func reply(t testing.TB, p []byte) (*dhcpv4.DHCPv4, netip.Addr) {
	t.Helper()
	if p == nil {
		return nil, netip.Addr{}
	}
	if sum(p[:20], 0) != 0xffff || sum(p[20:], uint32(sum(p[12:20], 17+uint32(len(p)-20)))) != 0xffff {
		t.Error("a checksum is wrong")
	}
	r, err := dhcpv4.FromBytes(p[28:])
	if err != nil {
		t.Fatal(err)
	}
	return r, netip.AddrFrom4([4]byte(p[16:20]))
}

func with(ip string) net.IP { return net.ParseIP(ip).To4() }

func TestAnswers(t *testing.T) {
	requested := func(ip string) dhcpv4.Modifier {
		return dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(with(ip)))
	}
	server := func(ip string) dhcpv4.Modifier {
		return dhcpv4.WithOption(dhcpv4.OptServerIdentifier(with(ip)))
	}
	const silence = dhcpv4.MessageTypeNone
	for _, tt := range []struct {
		name string
		kind dhcpv4.MessageType
		m    []dhcpv4.Modifier
		want dhcpv4.MessageType
		to   string
	}{
		{"discover", dhcpv4.MessageTypeDiscover, nil, dhcpv4.MessageTypeOffer, "10.83.0.7"},
		{"discover, broadcast", dhcpv4.MessageTypeDiscover, []dhcpv4.Modifier{dhcpv4.WithBroadcast(true)}, dhcpv4.MessageTypeOffer, "255.255.255.255"},
		{"selecting", dhcpv4.MessageTypeRequest, []dhcpv4.Modifier{requested("10.83.0.7"), server("10.83.0.1")}, dhcpv4.MessageTypeAck, "10.83.0.7"},
		{"selecting another", dhcpv4.MessageTypeRequest, []dhcpv4.Modifier{requested("10.83.0.7"), server("10.83.0.2")}, silence, ""},
		{"after a reboot", dhcpv4.MessageTypeRequest, []dhcpv4.Modifier{requested("10.83.0.7")}, dhcpv4.MessageTypeAck, "10.83.0.7"},
		{"from elsewhere", dhcpv4.MessageTypeRequest, []dhcpv4.Modifier{requested("192.168.1.7")}, dhcpv4.MessageTypeNak, "255.255.255.255"},
		{"renewing", dhcpv4.MessageTypeRequest, []dhcpv4.Modifier{dhcpv4.WithClientIP(with("10.83.0.7"))}, dhcpv4.MessageTypeAck, "10.83.0.7"},
		{"renewing another's", dhcpv4.MessageTypeRequest, []dhcpv4.Modifier{dhcpv4.WithClientIP(with("10.83.0.8"))}, dhcpv4.MessageTypeNak, "255.255.255.255"},
		{"for nothing", dhcpv4.MessageTypeRequest, nil, silence, ""},
		{"inform", dhcpv4.MessageTypeInform, []dhcpv4.Modifier{dhcpv4.WithClientIP(with("10.83.0.7"))}, dhcpv4.MessageTypeAck, "10.83.0.7"},
		{"release", dhcpv4.MessageTypeRelease, []dhcpv4.Modifier{dhcpv4.WithClientIP(with("10.83.0.7"))}, silence, ""},
		{"decline", dhcpv4.MessageTypeDecline, []dhcpv4.Modifier{requested("10.83.0.7")}, silence, ""},
		{"by a relay", dhcpv4.MessageTypeDiscover, []dhcpv4.Modifier{dhcpv4.WithRelay(with("10.83.0.9"))}, silence, ""},
		{"for another station", dhcpv4.MessageTypeDiscover, []dhcpv4.Modifier{dhcpv4.WithHwAddr(net.HardwareAddr{2, 0, 0, 0, 0, 8})}, silence, ""},
		{"a reply", dhcpv4.MessageTypeOffer, []dhcpv4.Modifier{func(d *dhcpv4.DHCPv4) { d.OpCode = dhcpv4.OpcodeBootReply }}, silence, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, to := reply(t, testListener().answer(request(t, tt.kind, tt.m...), station, time.Now()))
			if r == nil {
				if tt.want != silence {
					t.Fatal("no answer")
				}
				return
			}
			if r.MessageType() != tt.want || to.String() != tt.to {
				t.Errorf("got %s to %s, want %s to %s", r.MessageType(), to, tt.want, tt.to)
			}
			if tt.want == dhcpv4.MessageTypeNak || tt.name == "inform" {
				if !r.YourIPAddr.IsUnspecified() || r.IPAddressLeaseTime(0) != 0 {
					t.Errorf("it gives an address: %s", r.Summary())
				}
			} else if !r.YourIPAddr.Equal(with("10.83.0.7")) || r.IPAddressLeaseTime(0) != leaseTime {
				t.Errorf("it gives %s", r.Summary())
			}
		})
	}
}

func TestAnswerTellsAllThatAGuestNeeds(t *testing.T) {
	p := request(t, dhcpv4.MessageTypeDiscover,
		dhcpv4.WithRequestedOptions(dhcpv4.OptionClasslessStaticRoute, dhcpv4.OptionDNSDomainSearchList),
		dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.OptionClientIdentifier, []byte("\x01me"))))
	b := testListener().answer(p, station, time.Now())
	r, _ := reply(t, b)
	mtu := r.Options.Get(dhcpv4.OptionInterfaceMTU)
	routes := r.ClasslessStaticRoute()
	if len(b) < 28+minReply || r.SubnetMask().String() != "ffffff00" || !r.Router()[0].Equal(with("10.83.0.1")) || !r.DNS()[0].Equal(with("10.83.0.1")) ||
		r.DomainName() != "cleave" || r.HostName() != "web" || string(mtu) != "\x05\x78" || len(routes) != 1 || !routes[0].Router.Equal(with("10.83.0.1")) ||
		r.DomainSearch().Labels[0] != "cleave" || string(r.Options.Get(dhcpv4.OptionClientIdentifier)) != "\x01me" {
		t.Errorf("it says %s", r.Summary())
	}
}

func TestAnswersAreLimited(t *testing.T) {
	l, now, p := testListener(), time.Now(), request(t, dhcpv4.MessageTypeDiscover)
	count := func() (n int) {
		for range 100 {
			if l.answer(p, station, now) != nil {
				n++
			}
		}
		return n
	}
	if got := count(); got != burst {
		t.Errorf("%d answers at once", got)
	}
	now = now.Add(time.Second)
	if got := count(); got != perSecond {
		t.Errorf("%d answers in a second", got)
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add(request(f, dhcpv4.MessageTypeDiscover))
	f.Add(request(f, dhcpv4.MessageTypeRequest, dhcpv4.WithClientIP(with("10.83.0.7"))))
	f.Fuzz(func(t *testing.T, p []byte) {
		r, _ := reply(t, testListener().answer(p, station, time.Now()))
		if r != nil && !r.YourIPAddr.IsUnspecified() && !r.YourIPAddr.Equal(with("10.83.0.7")) {
			t.Errorf("an address of another: %s", r.Summary())
		}
	})
}
