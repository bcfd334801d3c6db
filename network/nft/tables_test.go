package nft

import (
	"github.com/cleave-project/cleave/network/internal/nettest"
	"net"
	"net/netip"
	"os/exec"
	"testing"
)

func TestMain(m *testing.M) { nettest.Main(m) }

func TestX(t *testing.T) {
	tb, err := Open("", 0x44000000)
	if err != nil {
		t.Fatal(err)
	}
	if err := tb.Load(); err != nil {
		t.Fatal(err)
	}
	if err := tb.Load(); err != nil {
		t.Fatal(err)
	}
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	el := Network("cleave0", mac, []netip.Addr{netip.MustParseAddr("10.83.0.1"), netip.MustParseAddr("fd00::1")}, true)
	el = append(el, Guest("cabcdefghijn0", mac, []netip.Addr{netip.MustParseAddr("10.83.0.2"), netip.MustParseAddr("fd00::2")})...)
	el = append(el, Forward(netip.Addr{}, TCP, 8080, netip.MustParseAddr("10.83.0.2"), 80))
	el = append(el, Forward(netip.MustParseAddr("fd01::1"), TCP, 8080, netip.MustParseAddr("fd00::2"), 80))
	t.Log(tb.Apply(el, nil))
	t.Log(tb.Reconcile(el))
	out, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
	t.Logf("%s %v", out, err)
}
