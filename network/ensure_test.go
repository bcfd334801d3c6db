package network

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cleave-project/cleave/api"
)

func TestEnsureIsIdempotentAndKeepsWhatItChose(t *testing.T) {
	w := newWorld(t)
	n := w.network(w.m, "default", api.NetworkSpec{})
	want := api.NetworkStatus{State: "ready", Bridge: "cleave0", IPv4: "10.83.0.1/20", IPv6: n.Status.IPv6}
	if diff := cmp.Diff(want, n.Status); diff != "" || !strings.HasPrefix(n.Status.IPv6, "fd") {
		t.Fatal(n.Status.IPv6, diff)
	}
	before := run(t, "ip", "address", "show", "cleave0")
	ensure := func(m *Manager) {
		t.Helper()
		got, err := m.Ensure(t.Context(), n)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Error(err, diff)
		}
	}
	ensure(w.m)
	m := w.reopen(w.m)
	ensure(m)
	if diff := cmp.Diff(before, run(t, "ip", "address", "show", "cleave0")); diff != "" {
		t.Error(diff)
	}
	// What is there stays, also when a VPN claims a part of it meanwhile.
	run(t, "ip", "route", "add", "10.83.4.0/24", "via", worldIP4)
	ensure(m)
	run(t, "ip", "link", "delete", "cleave0") // as after a reboot of the host
	if _, err := m.Ensure(t.Context(), n); !api.IsCode(err, api.CodeConflict) {
		t.Errorf("made again in spite of a clash: %v", err)
	}
	run(t, "ip", "route", "delete", "10.83.4.0/24")
	ensure(m)
}

// reopen is what a new daemon finds: nothing in memory. The old one no
// longer answers.
func (w *world) reopen(m *Manager) *Manager {
	w.Helper()
	if err := m.Close(); err != nil {
		w.Fatal(err)
	}
	return w.open(m.scope)
}

func TestEnsureAppliesChanges(t *testing.T) {
	w := newWorld(t)
	n := w.network(w.m, "lab", api.NetworkSpec{})
	no := false
	n.Spec = api.NetworkSpec{IPv4: "10.99.0.0/24", IPv6: "none", NAT: &no, MTU: 1400}
	status, err := w.m.Ensure(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	if status.IPv4 != "10.99.0.1/24" || status.IPv6 != "" {
		t.Errorf("got %+v", status)
	}
	link := run(t, "ip", "-o", "address", "show", status.Bridge)
	if strings.Contains(link, n.Status.IPv4) || !strings.Contains(link, "10.99.0.1/24") {
		t.Error(link)
	}
	if out := run(t, "ip", "link", "show", status.Bridge); !strings.Contains(out, "mtu 1400") {
		t.Error(out)
	}
	changed, err := w.m.tables.Reconcile(w.m.elements())
	if changed != 0 || err != nil {
		t.Errorf("%d elements were wrong, %v", changed, err)
	}
}

func TestEnsureRefusesWhatCantBe(t *testing.T) {
	w := newWorld(t)
	run(t, "ip", "route", "add", "10.50.0.0/16", "via", worldIP4)
	run(t, "ip", "link", "add", "clvwrong", "type", "bridge")
	t.Cleanup(func() { run(t, "ip", "link", "delete", "clvwrong") })
	w.network(w.m, "first", api.NetworkSpec{IPv4: "10.60.0.0/24", IPv6: "fd00:60::/64"})
	for _, test := range []struct {
		name   string
		spec   api.NetworkSpec
		bridge string
		code   api.Code
		says   string
	}{
		{"address in use", api.NetworkSpec{IPv4: "192.0.2.0/25"}, "", api.CodeConflict, "address 192.0.2.2/24 of up0"},
		{"IPv6 address in use", api.NetworkSpec{IPv6: "2001:db8::/80"}, "", api.CodeConflict, "address 2001:db8::2/64 of up0"},
		{"inside a route", api.NetworkSpec{IPv4: "10.50.7.0/24"}, "", api.CodeConflict, "route 10.50.0.0/16 by up0"},
		{"around a route", api.NetworkSpec{IPv4: "10.0.0.0/8"}, "", api.CodeConflict, "overlaps"},
		{"another network", api.NetworkSpec{IPv4: "10.60.0.0/28"}, "", api.CodeConflict, "of clv"},
		{"not a subnet", api.NetworkSpec{IPv4: "10.1.2.3"}, "", api.CodeInvalid, "prefix length"},
		{"host bits", api.NetworkSpec{IPv4: "10.1.2.3/24"}, "", api.CodeInvalid, "begins at 10.1.2.0/24"},
		{"too small", api.NetworkSpec{IPv4: "10.1.2.0/31"}, "", api.CodeInvalid, "too small"},
		{"wrong family", api.NetworkSpec{IPv4: "fd00::/64"}, "", api.CodeInvalid, "family"},
		{"multicast", api.NetworkSpec{IPv4: "224.0.0.0/24"}, "", api.CodeInvalid, "hosts"},
		{"small mtu", api.NetworkSpec{MTU: 100}, "", api.CodeInvalid, "mtu"},
		{"small mtu for IPv6", api.NetworkSpec{MTU: 1000}, "", api.CodeInvalid, "1280"},
		{"domain", api.NetworkSpec{Domain: "a..b"}, "", api.CodeInvalid, "domain"},
		{"link of somebody else", api.NetworkSpec{}, "clvwrong", api.CodeConflict, "clvwrong"},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := &api.Network{Meta: api.Meta{ID: testID("refused"), Name: "refused"}, Spec: test.spec}
			n.Status.Bridge = test.bridge
			_, err := w.m.Ensure(t.Context(), n)
			if !api.IsCode(err, test.code) || !strings.Contains(err.Error(), test.says) {
				t.Fatalf("got %v", err)
			}
			if out := run(t, "ip", "-o", "link", "show", "type", "bridge"); strings.Count(out, "\n") != 2 {
				t.Errorf("left behind: %s", out)
			}
		})
	}
}

func TestChosenSubnetsAvoidWhatIsInUse(t *testing.T) {
	prefix := netip.MustParsePrefix
	for _, test := range []struct {
		name string
		used []string
		want string
	}{
		{"nothing", nil, "10.83.0.1/20"},
		{"the first", []string{"10.83.0.0/20"}, "10.83.16.1/20"},
		{"a part of it", []string{"10.83.15.255/32"}, "10.83.16.1/20"},
		{"a VPN over all of 10", []string{"10.0.0.0/8"}, "172.31.0.1/20"},
		{"and Docker's", []string{"10.0.0.0/8", "172.16.0.0/12"}, "192.168.0.1/20"},
		{"everything", []string{"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			var all []used
			for _, u := range test.used {
				all = append(all, used{prefix(u), u})
			}
			got, err := chooseIPv4(all)
			if test.want == "" {
				if !api.IsCode(err, api.CodeConflict) {
					t.Errorf("got %v, %v", got, err)
				}
			} else if got.String() != test.want || err != nil {
				t.Errorf("got %v, %v, want %s", got, err, test.want)
			}
		})
	}
	if _, err := chooseIPv6([]used{{prefix("fc00::/7"), ""}}); !api.IsCode(err, api.CodeConflict) {
		t.Errorf("got %v", err)
	}
}

func TestDaemonsSideBySideChooseDifferentSubnets(t *testing.T) {
	w := newWorld(t)
	other := w.open("0a1b2c")
	a, b := w.network(w.m, "default", api.NetworkSpec{}), w.network(other, "default", api.NetworkSpec{})
	if b.Status.Bridge != "clv0a1b2cn0" || b.Status.IPv4 == a.Status.IPv4 {
		t.Errorf("got %+v beside %+v", b.Status, a.Status)
	}
	web, far := w.guest(w.m, a), w.attach(other, b, "zz")
	web.Answer(t, 80, "web")
	if got, err := far.Ask("tcp", at(web.IPv4.String(), 80)); err == nil {
		t.Errorf("a guest of another daemon is answered %q", got)
	}
	if err := w.m.SetForwards(t.Context(), web.Instance, []Forward{web.forward("tcp", 8080, 80)}); err != nil {
		t.Fatal(err)
	}
	if got, err := far.Ask("tcp", at(hostIP4, 8080)); !strings.HasPrefix(got, "web") {
		t.Errorf("published port from another daemon's guest: %q, %v", got, err)
	}
	// The host goes on forwarding for one when the other goes.
	if err := other.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	if v, _ := readSysctl("net/ipv4/ip_forward"); v != "1" {
		t.Errorf("ip_forward is %s", v)
	}
	w.outside.Answer(t, 80, "world")
	if got, err := web.Ask("tcp", at(worldIP4, 80)); !strings.HasPrefix(got, "world") {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestHostSettingsGoBackToWhatTheyWere(t *testing.T) {
	w := newWorld(t)
	for _, s := range []setting{{"net/ipv4/ip_forward", "0"}, {"net/ipv6/conf/all/forwarding", "0"}, {"net/ipv6/conf/up0/accept_ra", "1"}} {
		if err := writeSysctl(s.key, s.value); err != nil {
			t.Fatal(err)
		}
	}
	check := func(when string, want ...string) {
		t.Helper()
		var got []string
		for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv6/conf/up0/accept_ra"} {
			v, _ := readSysctl(key)
			got = append(got, v)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(when, diff)
		}
	}
	w.network(w.m, "default", api.NetworkSpec{})
	check("with a network", "1", "1", "2")
	m := w.reopen(w.m)
	w.network(m, "default", api.NetworkSpec{})
	if err := m.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	check("afterwards", "0", "0", "1")
	if _, err := os.Stat(m.ledger.path); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestRemoveLeavesNothing(t *testing.T) {
	w := newWorld(t)
	n := w.network(w.m, "lab", api.NetworkSpec{})
	g := w.guest(w.m, n)
	if err := w.m.Remove(t.Context(), n.ID); !api.IsCode(err, api.CodeInUse) {
		t.Errorf("with a port on it: %v", err)
	}
	if err := w.m.Detach(t.Context(), g.Port); err != nil {
		t.Fatal(err)
	}
	m := w.reopen(w.m) // a daemon that only knows the id
	for range 2 {
		if err := m.Remove(t.Context(), n.ID); err != nil {
			t.Fatal(err)
		}
	}
	if out := run(t, "ip", "-o", "link", "show", "type", "bridge"); out != "" {
		t.Error(out)
	}
}
