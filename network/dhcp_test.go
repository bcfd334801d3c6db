package network

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
)

// dhcp runs a client in the guest, with no address at first, and returns what
// it was told.
func (g *guest) dhcp(t *testing.T, more ...string) (string, error) {
	t.Helper()
	if out, err := exec.Command("busybox", "udhcpc", "--help").CombinedOutput(); err != nil && !strings.Contains(string(out), "Usage") {
		t.Skip("busybox has no udhcpc; install busybox-static")
	}
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho $1 ip=$ip mask=$mask router=$router dns=$dns domain=$domain hostname=$hostname mtu=$mtu lease=$lease\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return g.Try(append([]string{"busybox", "udhcpc", "-f", "-q", "-n", "-i", "eth0", "-s", script, "-t", "5", "-T", "1", "-O", "mtu", "-O", "hostname", "-O", "staticroutes"}, more...)...)
}

func TestGuestLearnsItsAddress(t *testing.T) { ends(t, learnAddress) }

func learnAddress(w *world) {
	t := w.T
	n := w.network(w.m, "net", api.NetworkSpec{Domain: "lab.example", MTU: 1400})
	g := w.unplugged(w.m, n, "web")
	g.Hostname = "web"
	w.plug(w.m, n, g)
	other := w.guest(w.m, n)
	g.Run("ip", "address", "flush", "dev", "eth0", "scope", "global")
	v4, _ := gateways(n)
	want := fmt.Sprintf("ip=%s mask=%d router=%s dns=%s domain=lab.example hostname=web mtu=1400 lease=604800", g.IPv4, v4.Bits(), v4.Addr(), v4.Addr())
	for _, flags := range [][]string{nil, {"-B"}, {"-r", g.IPv4.String()}, {"-r", "10.99.99.99"}} {
		out, err := g.dhcp(t, flags...)
		if err != nil || !strings.Contains(out, "bound "+want) {
			t.Errorf("%v: %v: %s", flags, err, out)
		}
	}
	// The daemon was replaced.
	if err := w.m.Close(); err != nil {
		t.Fatal(err)
	}
	m := w.open("")
	if _, err := m.Ensure(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	if err := m.Sweep(t.Context(), []Port{g.Port, other.Port}, nil); err != nil {
		t.Fatal(err)
	}
	if out, err := g.dhcp(t); err != nil || !strings.Contains(out, want) {
		t.Errorf("after a restart: %v: %s", err, out)
	}
	if err := m.Detach(t.Context(), other.Port); err != nil {
		t.Fatal(err)
	}
	other.Run("ip", "address", "flush", "dev", "eth0", "scope", "global")
	if out, err := other.dhcp(t, "-t", "1"); err == nil {
		t.Errorf("a port that is gone gets an address: %s", out)
	}
}

func TestDHCPDoesNotAnswerOthersStations(t *testing.T) {
	w := newWorld(t)
	n := w.network(w.m, "net", api.NetworkSpec{})
	g, victim := w.guest(w.m, n), w.guest(w.m, n)
	g.Run("ip", "address", "flush", "dev", "eth0", "scope", "global")
	// With the victim's MAC, and with one of nobody.
	for _, mac := range []net.HardwareAddr{victim.MAC, {2, 9, 9, 9, 9, 9}} {
		g.Run("ip", "link", "set", "eth0", "address", mac.String())
		if out, err := g.dhcp(t, "-t", "1"); err == nil {
			t.Errorf("%s got an address: %s", mac, out)
		}
	}
}

func TestGuestWithoutAddressReachesNothingElse(t *testing.T) {
	w := newWorld(t)
	n := w.network(w.m, "net", api.NetworkSpec{})
	g, other := w.guest(w.m, n), w.guest(w.m, n)
	v4, _ := gateways(n)
	s := other.Raw(t, "eth0")
	raw := g.Raw(t, "eth0")
	for _, port := range []byte{53, 67, 99} {
		for _, to := range []net.IP{other.IPv4.AsSlice(), v4.Addr().AsSlice(), {255, 255, 255, 255}} {
			if port == 67 && to.Equal(net.IPv4bcast) {
				continue // that is DHCP
			}
			frame := append(append(append([]byte{}, other.MAC...), g.MAC...), 8, 0)
			ip := []byte{0x45, 0, 0, 36, 0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0}
			frame = append(append(frame, ip...), to...)
			frame = append(frame, 0, 68, 0, port, 0, 16, 0, 0)
			raw.Send(t, append(frame, "stealthy"...))
		}
	}
	if s.Receives([]byte("stealthy"), 300*time.Millisecond) {
		t.Error("a packet without source address came through")
	}
}

func TestAFloodOfRequestsDisplacesNobody(t *testing.T) {
	w := newWorld(t)
	n := w.network(w.m, "net", api.NetworkSpec{})
	flooder, g := w.guest(w.m, n), w.guest(w.m, n)
	v4, _ := gateways(n)
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = flooder.Do(func() error {
			c, err := net.Dial("udp", net.JoinHostPort(v4.Addr().String(), "67"))
			if err != nil {
				return err
			}
			defer c.Close()
			for {
				select {
				case <-stop:
					return nil
				default:
					_, _ = c.Write(make([]byte, 300))
				}
			}
		})
	}()
	defer func() { close(stop); <-done }()
	g.Run("ip", "address", "flush", "dev", "eth0", "scope", "global")
	if out, err := g.dhcp(t); err != nil {
		t.Errorf("no address: %v: %s", err, out)
	}
}
