package nic

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// ownNetwork moves the test to a network namespace, which goes with the
// thread.
func ownNetwork(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a network namespace needs root")
	}
	runtime.LockOSThread() // and never unlocked: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
}

func ip(t *testing.T, args ...string) string {
	t.Helper()
	b, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("ip %v: %v: %s", args, err, b)
	}
	return string(b)
}

func sysctl(name, value string) error {
	return os.WriteFile("/proc/thread-self/../../sys/"+name, []byte(value), 0)
}

func TestInterfacesGetNamesAddressesAndRoutes(t *testing.T) {
	ownNetwork(t)
	ip(t, "link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
	ip(t, "link", "set", "eth0", "address", "02:00:00:00:00:0a")
	if err := Rename(map[string]string{"eth0": "eth1", "eth1": "eth0"}); err != nil {
		t.Fatal(err)
	}
	err := Configure([]NIC{{
		Name: "eth1", MTU: 1400,
		Prefixes: []netip.Prefix{netip.MustParsePrefix("10.9.8.7/24"), netip.MustParsePrefix("fd00::7/64")},
		Gateways: []netip.Addr{netip.MustParseAddr("10.9.8.1"), netip.MustParseAddr("fd00::1")},
	}, {Name: "eth0"}}, sysctl)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"mtu 1400", "02:00:00:00:00:0a", "inet 10.9.8.7/24 brd 10.9.8.255", "inet6 fd00::7/64"} {
		if got := ip(t, "address", "show", "eth1"); !strings.Contains(got, want) {
			t.Errorf("no %q in %s", want, got)
		}
	}
	for _, family := range []string{"-4", "-6"} {
		if got := ip(t, family, "route"); !strings.Contains(got, "default via ") {
			t.Errorf("no default route in %s", got)
		}
	}
	if l, err := net.InterfaceByName("lo"); err != nil || l.Flags&net.FlagUp == 0 {
		t.Errorf("loopback: %v, %v", l, err)
	}
}

func TestRefusalSaysWhatWasRefused(t *testing.T) {
	ownNetwork(t)
	err := Configure([]NIC{{Name: "nic9"}}, func(string, string) error { return nil })
	if err == nil || !strings.Contains(err.Error(), "set nic9 up") {
		t.Errorf("got %v", err)
	}
	ip(t, "link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
	err = Configure([]NIC{{Name: "eth0", Gateways: []netip.Addr{netip.MustParseAddr("::1")}}}, func(string, string) error { return nil })
	if err == nil || !strings.Contains(err.Error(), "route by ::1 on eth0") {
		t.Errorf("got %v", err)
	}
}

func FuzzAcks(f *testing.F) {
	var r requests
	r.up("lo", 0)
	f.Add(r.buf)
	f.Fuzz(func(t *testing.T, in []byte) {
		if n, _ := r.acks(in); n > len(in)/20 {
			t.Errorf("%d acknowledgements in %d bytes", n, len(in))
		}
	})
}
