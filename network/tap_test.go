package network

import (
	"errors"
	"io"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/network/internal/nettest"
)

// monitor plays the one of a machine: g's namespace is its guest, on whose
// interface is what comes by the port's descriptor, and the other way round.
// It ends, and its port with it, when g.tap is closed.
func monitor(t *testing.T, g *guest) {
	t.Helper()
	inner := innerTap(t, g)
	ended := make(chan struct{}, 2)
	pass := func(to, from *os.File) {
		defer func() { ended <- struct{}{} }()
		frame := make([]byte, 1<<16)
		for {
			n, err := from.Read(frame)
			if err != nil {
				return
			}
			// A guest that doesn't listen misses what it is sent.
			if _, err := to.Write(frame[:n]); err != nil && !errors.Is(err, unix.EIO) {
				return
			}
		}
	}
	go pass(inner, g.tap)
	go pass(g.tap, inner)
	t.Cleanup(func() {
		_, _ = g.tap.Close(), inner.Close()
		<-ended
		<-ended
	})
}

// innerTap is the interface in a machine's guest, seen from its monitor.
func innerTap(t *testing.T, g *guest) *os.File {
	t.Helper()
	var f *os.File
	err := g.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		req, err := unix.NewIfreq(g.Name)
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			return err
		}
		f = os.NewFile(uintptr(fd), "guest's "+g.Name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	g.Run("ip", "link", "set", g.Name, "address", g.MAC.String())
	return f
}

func TestATapIsAPortLikeAnother(t *testing.T) {
	w := newWorld(t)
	w.taps = true
	n := w.network(w.m, "default", api.NetworkSpec{MTU: 1400})
	g := w.guest(w.m, n)
	outside := run(t, "ip", "-d", "address", "show", g.Link)
	for _, want := range []string{"master cleave0", "learning off", "flood off", "hairpin on", "mtu 1400", "vnet_hdr on", "pi off", g.hostMAC().String()} {
		if !strings.Contains(outside, want) {
			t.Errorf("no %q outside: %s", want, outside)
		}
	}
	if strings.Contains(outside, "inet") {
		t.Errorf("the host's end has an address: %s", outside)
	}
}

func TestATapGoesWithItsLastDescriptor(t *testing.T) {
	w := newWorld(t)
	n := w.network(w.m, "default", api.NetworkSpec{})
	g := w.unplugged(w.m, n, "gone")
	g.Out = api.MiB // has a second device
	tap, err := w.m.OpenTap(t.Context(), g.Port)
	if err != nil {
		t.Fatal(err)
	}
	if err := tap.Close(); err != nil {
		t.Fatal(err)
	}
	if out := run(t, "ip", "-o", "link"); strings.Contains(out, g.Link+":") {
		t.Errorf("the link is still there: %s", out)
	}
	if got, err := w.m.Counters([]string{g.Link}); err != nil || len(got) != 0 {
		t.Errorf("counters of what is gone: %v, %v", got, err)
	}
	if err := w.m.Detach(t.Context(), g.Port); err != nil {
		t.Fatal(err)
	}
	if changed, err := w.m.tables.Reconcile(w.m.elements()); changed != 0 || err != nil {
		t.Errorf("%d elements were left, %v", changed, err)
	}
}

func TestATapReplacesOneThatIsStillHeld(t *testing.T) {
	w := newWorld(t)
	n := w.network(w.m, "default", api.NetworkSpec{})
	g := w.unplugged(w.m, n, "again")
	held, err := w.m.OpenTap(t.Context(), g.Port)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = held.Close() }()
	if g.tap, err = w.m.OpenTap(t.Context(), g.Port); err != nil {
		t.Fatal(err)
	}
	monitor(t, g)
	g.setUp(n)
	w.outside.Answer(t, 80, "world")
	if got, err := g.Ask("tcp", at(worldIP4, 80)); err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := held.Read(make([]byte, 2000)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the descriptor of the one before still reads: %v", err)
	}
}

func TestOpenTapThatFailsLeavesNothing(t *testing.T) {
	w := newWorld(t)
	n := w.network(w.m, "default", api.NetworkSpec{})
	good := Port{Network: n.ID, Instance: "i", Link: "caaaaaaaaaan0", Name: "eth0", MAC: testMAC("x"), IPv4: netip.MustParseAddr("10.83.0.9")}
	with := func(change func(*Port)) Port { p := good; change(&p); return p }
	for _, test := range []struct {
		name string
		port Port
		code api.Code
	}{
		{"unknown network", with(func(p *Port) { p.Network = "none" }), api.CodeNotFound},
		{"gateway's address", with(func(p *Port) { p.IPv4 = netip.MustParseAddr("10.83.0.1") }), api.CodeInvalid},
		{"large mtu", with(func(p *Port) { p.MTU = 9000 }), api.CodeInvalid},
		{"small mtu", with(func(p *Port) { p.MTU = 1 }), api.CodeInternal},               // known by the kernel alone
		{"name of an address", with(func(p *Port) { p.Link = "a/b" }), api.CodeInternal}, // likewise
	} {
		t.Run(test.name, func(t *testing.T) {
			f, err := w.m.OpenTap(t.Context(), test.port)
			if f != nil || api.AsError(err) == nil || api.AsError(err).Code != test.code {
				t.Errorf("got %v, %v", f, err)
			}
			if changed, err := w.m.tables.Reconcile(w.m.elements()); changed != 0 || err != nil || len(w.m.ports) != 0 {
				t.Errorf("left %d elements, %v, ports %v", changed, err, w.m.ports)
			}
			if out := run(t, "ip", "-o", "link"); strings.Contains(out, good.Link) {
				t.Errorf("left a link: %s", out)
			}
		})
	}
}

// A guest whose monitor lives keeps its port over a daemon's death; one whose
// monitor died meanwhile has no link, and loses its elements too.
func TestSweepForgetsTapsThatAreGone(t *testing.T) {
	w := newWorld(t)
	w.taps = true
	n := w.network(w.m, "default", api.NetworkSpec{})
	lives, died := w.guest(w.m, n), w.guest(w.m, n)
	m := w.reopen(w.m)
	if err := died.tap.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Ensure(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	if err := m.Sweep(t.Context(), []Port{lives.Port, died.Port}, nil); err != nil {
		t.Fatal(err)
	}
	w.outside.Answer(t, 80, "world")
	if got, err := lives.Ask("tcp", at(worldIP4, 80)); err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	// What the kernel counts of a port that shouted expires by itself.
	rules := regexp.MustCompile(`"[a-z0-9]+" limit rate .*`).ReplaceAllString(run(t, "nft", "list", "ruleset"), "")
	if strings.Contains(rules, died.Link) || !strings.Contains(rules, lives.Link) {
		t.Errorf("rules: %s", rules)
	}
}

func TestCountersOfATapAreTheGuests(t *testing.T) {
	w := newWorld(t)
	w.taps = true
	n := w.network(w.m, "default", api.NetworkSpec{})
	g := w.guest(w.m, n)
	sink := nettest.Self(t).Raw(t, g.Link) // nobody else listens
	out := g.Raw(t, "eth0")
	gateway, _ := w.m.Gateway(n)
	to := func(data []byte) []byte {
		return ether(w.m.networks[n.ID].mac, g.MAC, unix.ETH_P_IP, udp4(g.IPv4, gateway, 9, 9, data))
	}
	before, err := w.m.Counters([]string{g.Link})
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		out.Send(t, to(make([]byte, 1000)))
	}
	mark := []byte("the last of this test")
	out.Send(t, to(mark))
	sink.Receives(mark, 2*time.Second)
	after, err := w.m.Counters([]string{g.Link})
	if err != nil {
		t.Fatal(err)
	}
	if sent := after[g.Link].TxBytes - before[g.Link].TxBytes; sent < 20_000 || sent > 30_000 {
		t.Errorf("the guest sent 21 KB; counted %d", sent)
	}
	if got := after[g.Link].RxBytes - before[g.Link].RxBytes; got > 5000 {
		t.Errorf("the guest was sent next to nothing; counted %d", got)
	}
}
