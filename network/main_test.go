package network

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/network/internal/nettest"
)

func TestMain(m *testing.M) { nettest.Main(m) }

// world is a host under test: the namespace that the tests run in, with an
// uplink to a namespace that stands for the rest of the world.
type world struct {
	*testing.T
	m       *Manager
	outside *nettest.Namespace
	guests  int
	taps    bool // guests are machines
}

// ends runs a test with guests that are namespaces, and with guests that are
// machines.
func ends(t *testing.T, test func(*world)) {
	t.Run("veth", func(t *testing.T) { test(newWorld(t)) })
	t.Run("tap", func(t *testing.T) {
		w := newWorld(t)
		w.taps = true
		test(w)
	})
}

const (
	hostIP4, hostIP6   = "192.0.2.2", "2001:db8::2"
	worldIP4, worldIP6 = "192.0.2.1", "2001:db8::1"
)

// newWorld makes a host with an uplink. Whatever the test leaves is a failure.
func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{T: t, outside: nettest.New(t)}
	t.Cleanup(func() { run(t, "ip", "link", "delete", "up0") })
	run(t, "ip", "link", "add", "up0", "type", "veth", "peer", "name", "up0", "netns", fmt.Sprint(w.outside.PID))
	configure(t, func(args ...string) { run(t, args...) }, "up0", hostIP4+"/24", hostIP6+"/64")
	configure(t, func(args ...string) { w.outside.Run(args...) }, "up0", worldIP4+"/24", worldIP6+"/64")
	run(t, "ip", "route", "replace", "default", "via", worldIP4)
	run(t, "ip", "-6", "route", "replace", "default", "via", worldIP6)
	w.m = w.open("")
	return w
}

func configure(t *testing.T, run func(...string), link, ip4, ip6 string) {
	t.Helper()
	run("ip", "link", "set", link, "up")
	run("ip", "address", "add", ip4, "dev", link)
	run("ip", "address", "add", ip6, "dev", link, "nodad")
}

// open starts a manager whose traces are gone when the test ends.
func (w *world) open(scope string) *Manager {
	w.Helper()
	m, err := Open(w.Context(), w.options(scope))
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() {
		_ = m.Close()
		last, err := Open(context.Background(), w.options(scope))
		if err == nil {
			err = last.Destroy(context.Background())
		}
		if err != nil {
			w.Errorf("destroy: %v", err)
		}
		for _, command := range []string{
			"ip -o link show | grep -E 'cleave|clv| c[a-z2-7]{10}n' || true",
			"nft list tables | grep 'cleave$' || true",
			"test ! -e " + m.ledger.path + " || cat " + m.ledger.path,
		} {
			if scope == "" {
				if out := run(w.T, "sh", "-c", command); out != "" {
					w.Errorf("left behind: %s", out)
				}
			}
		}
	})
	return m
}

func (w *world) options(scope string) Options {
	resolv := filepath.Join(w.TempDir(), "resolv.conf")
	if err := os.WriteFile(resolv, []byte("nameserver "+worldIP4+"\n"), 0o600); err != nil {
		w.Fatal(err)
	}
	return Options{Scope: scope, ResolvConf: resolv, Log: slog.New(slog.NewTextHandler(testWriter{w.T}, nil))}
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func run(t testing.TB, args ...string) string {
	t.Helper()
	return nettest.Here(t, args...)
}

// network makes a network and returns it with its status.
func (w *world) network(m *Manager, name string, spec api.NetworkSpec) *api.Network {
	w.Helper()
	n := &api.Network{Meta: api.Meta{ID: testID(name), Name: name}, Spec: spec}
	status, err := m.Ensure(w.Context(), n)
	if err != nil {
		w.Fatalf("ensure %s: %v", name, err)
	}
	if status.State != "ready" {
		w.Fatalf("network %s is %s", name, status.State)
	}
	n.Status = status
	return n
}

// testID makes ten characters of base32 out of a name.
func testID(name string) string {
	return (strings.ToLower(strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' {
			return r - '0' + 'a'
		}
		return r
	}, name)) + "aaaaaaaaaa")[:10]
}

// guest is a namespace with a port.
type guest struct {
	*nettest.Namespace
	Port
	tap *os.File // of a machine
}

// guest attaches a namespace to n and configures it as an engine would.
func (w *world) guest(m *Manager, n *api.Network) *guest {
	w.Helper()
	w.guests++
	g := w.attach(m, n, fmt.Sprintf("g%d", w.guests))
	return g
}

func (w *world) attach(m *Manager, n *api.Network, name string) *guest {
	w.Helper()
	g := w.unplugged(m, n, name)
	w.plug(m, n, g)
	return g
}

// plug makes the port of a guest and sets it up inside.
func (w *world) plug(m *Manager, n *api.Network, g *guest) {
	w.Helper()
	var err error
	if w.taps {
		g.tap, err = m.OpenTap(w.Context(), g.Port)
	} else {
		err = m.Attach(w.Context(), g.Port, g.PID)
	}
	if err != nil {
		w.Fatalf("attach %s: %v", g.Instance, err)
	}
	if w.taps {
		monitor(w.T, g)
	}
	g.setUp(n)
}

// unplugged is a guest whose port has yet to be made.
func (w *world) unplugged(m *Manager, n *api.Network, name string) *guest {
	w.Helper()
	v4, v6, err := m.Allocate(n, func(netip.Addr) bool { return false }, "", "")
	if err != nil {
		w.Fatal(err)
	}
	id := testID(name)
	return &guest{Namespace: nettest.New(w.T), Port: Port{
		Network: n.ID, Instance: id, Link: "c" + id + "n0", Name: "eth0", MAC: testMAC(name), IPv4: v4.Addr(), IPv6: v6.Addr(),
	}}
}

func (g *guest) setUp(n *api.Network) {
	v4, v6 := gateways(n)
	g.Run("ip", "link", "set", "eth0", "up")
	if v4.IsValid() {
		g.Run("ip", "address", "add", netip.PrefixFrom(g.IPv4, v4.Bits()).String(), "dev", "eth0")
		g.Run("ip", "route", "add", "default", "via", v4.Addr().String())
	}
	if v6.IsValid() {
		g.Run("ip", "address", "add", netip.PrefixFrom(g.IPv6, v6.Bits()).String(), "dev", "eth0", "nodad")
		g.Run("ip", "-6", "route", "add", "default", "via", v6.Addr().String())
	}
}

func testMAC(name string) net.HardwareAddr {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 0}
	var sum uint32 = 17
	for _, c := range name {
		sum = sum*31 + uint32(c)
	}
	binary.BigEndian.PutUint32(mac[2:], sum)
	return mac
}
