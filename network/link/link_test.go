package link

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/network/internal/nettest"
)

func TestMain(m *testing.M) { nettest.Main(m) }

const group = 77

// dial connects and makes a bridge, which is gone when the test ends.
func dial(t testing.TB) (c *Conn, bridge int) {
	t.Helper()
	c, err := Dial()
	if err != nil {
		t.Fatal(err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "br0"
	if err := c.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(c.DeleteGroup(group), c.Delete("br0"), c.Close()); err != nil {
			t.Error(err)
		}
		if out := nettest.Here(t, "ip", "-br", "link"); strings.Count(out, "\n") != 1 {
			t.Errorf("left behind: %s", out)
		}
	})
	if bridge, err = c.Index("br0"); err != nil {
		t.Fatal(err)
	}
	return c, bridge
}

func veth(i, bridge, pid int) Veth {
	return Veth{
		Name: fmt.Sprint("v", i), MAC: net.HardwareAddr{0xfe, 0, 0, 0, byte(i >> 8), byte(i)}, Group: group, Bridge: bridge,
		MTU: 1500, IPv6: true, Peer: fmt.Sprint("eth", i), PeerMAC: net.HardwareAddr{2, 0, 0, 0, byte(i >> 8), byte(i)}, PID: pid,
	}
}

func TestAddVethPutsBothEndsInPlace(t *testing.T) {
	c, bridge := dial(t)
	ns := nettest.New(t)
	index, err := c.AddVeth(veth(1, bridge, ns.PID))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := c.Index("v1"); got != index || err != nil {
		t.Errorf("index %d, %v, want %d", got, err, index)
	}
	outside := nettest.Here(t, "ip", "-d", "link", "show", "v1")
	for _, want := range []string{"fe:00:00:00:00:01", "master br0", "group 77", ",UP", "learning off", "flood off", "addrgenmode none", "numtxqueues 1"} {
		if !strings.Contains(outside, want) {
			t.Errorf("no %q in %s", want, outside)
		}
	}
	if inside := ns.Run("ip", "link", "show", "eth1"); !strings.Contains(inside, "02:00:00:00:00:01") || strings.Contains(inside, ",UP") {
		t.Errorf("inside: %s", inside)
	}
	if _, err := c.AddVeth(veth(1, bridge, ns.PID)); !errors.Is(err, unix.EEXIST) {
		t.Errorf("the same again: %v", err)
	}
}

func TestAddVethThatFailsLeavesNothing(t *testing.T) {
	c, bridge := dial(t)
	ns := nettest.New(t)
	for name, v := range map[string]Veth{
		"no process":         veth(1, bridge, 1<<22-1),
		"no bridge":          veth(1, 9999, ns.PID),
		"settings of a port": veth(1, 0, ns.PID), // not on a bridge
	} {
		if _, err := c.AddVeth(v); err == nil {
			t.Errorf("%s: no error", name)
		}
		if _, err := c.Index("v1"); !errors.Is(err, unix.ENODEV) {
			t.Errorf("%s: left a link, %v", name, err)
		}
		if out := ns.Run("ip", "-br", "link"); strings.Contains(out, "eth1") {
			t.Errorf("%s: left the guest's end: %s", name, out)
		}
	}
}

func TestDeleteOfWhatIsGone(t *testing.T) {
	c, _ := dial(t)
	if err := errors.Join(c.Delete("nothing"), c.DeleteGroup(4711)); err != nil {
		t.Error(err)
	}
	if _, err := c.Index("name that is too long"); err == nil {
		t.Error("found a link whose name can't be")
	}
}

func TestDeleteGroupSparesOthers(t *testing.T) {
	c, bridge := dial(t)
	ns := nettest.New(t)
	for i := range 20 {
		if _, err := c.AddVeth(veth(i, bridge, ns.PID)); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.DeleteGroup(group); err != nil {
		t.Fatal(err)
	}
	if out := nettest.Here(t, "ip", "-br", "link"); strings.Contains(out, "v1") || !strings.Contains(out, "br0") {
		t.Error(out)
	}
}

func TestLimitsComeAndGo(t *testing.T) {
	c, bridge := dial(t)
	ns := nettest.New(t)
	index, err := c.AddVeth(veth(1, bridge, ns.PID))
	if err != nil {
		t.Fatal(err)
	}
	for _, rate := range []uint64{1 << 20, 5 << 30, 1000, 125_000} {
		for range 2 {
			shaper, err := c.Divert(index, "v1i", group)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(c.Limit(index, rate), c.Limit(shaper, rate)); err != nil {
				t.Fatal(err)
			}
		}
		out := nettest.Here(t, "tc", "qdisc", "show")
		if strings.Count(out, "tbf") != 2 || strings.Count(out, "ingress") != 1 {
			t.Errorf("at %d: %s", rate, out)
		}
		if out := nettest.Here(t, "tc", "filter", "show", "dev", "v1", "ingress"); strings.Count(out, "mirred") != 1 {
			t.Errorf("at %d: %s", rate, out)
		}
	}
	for range 2 {
		if err := errors.Join(c.Limit(index, 0), c.Undivert(index, "v1i")); err != nil {
			t.Error(err)
		}
	}
	if out := nettest.Here(t, "tc", "qdisc", "show"); strings.Contains(out, "tbf") || strings.Contains(out, "ingress") {
		t.Error(out)
	}
}

func TestParseStatsTakesAnything(t *testing.T) {
	for _, m := range [][]byte{nil, make([]byte, 11), make([]byte, 12), append(make([]byte, 12), 8, 0, 1, 0, 1, 2, 3, 4)} {
		if _, _, ok := parseStats(m); ok {
			t.Errorf("%x has counters", m)
		}
	}
}

func BenchmarkAddVeth(b *testing.B) {
	c, bridge := dial(b)
	ns := nettest.New(b)
	i := 0
	for b.Loop() {
		i++
		if _, err := c.AddVeth(veth(i, bridge, ns.PID)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAllStats(b *testing.B) {
	c, bridge := dial(b)
	ns := nettest.New(b)
	for i := range 200 {
		if _, err := c.AddVeth(veth(i, bridge, ns.PID)); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if _, err := c.AllStats(); err != nil {
			b.Fatal(err)
		}
	}
}
