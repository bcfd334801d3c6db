package network

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/network/internal/nettest"
)

// dockerLike sets up what Docker does to a host: forwarding is refused to
// everybody whom no rule lets through.
func dockerLike(t *testing.T, iptables string, ownChain bool) {
	t.Helper()
	if out, err := exec.Command(iptables, "-S").CombinedOutput(); err != nil {
		t.Skipf("%s can't be used here: %v: %s", iptables, err, out)
	}
	commands := []string{"-P FORWARD DROP", "-P INPUT DROP", "-A INPUT -i lo -j ACCEPT", "-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"}
	if ownChain {
		commands = append(commands, "-N DOCKER-USER", "-A DOCKER-USER -j RETURN", "-I FORWARD -j DOCKER-USER")
	}
	for _, c := range commands {
		run(t, append([]string{iptables}, strings.Fields(c)...)...)
	}
	t.Cleanup(func() {
		for _, c := range []string{"-P FORWARD ACCEPT", "-P INPUT ACCEPT", "-F", "-X"} {
			run(t, append([]string{iptables}, strings.Fields(c)...)...)
		}
	})
}

func TestGuestsPassADroppingFirewall(t *testing.T) {
	for _, test := range []struct {
		name, iptables string
		ownChain       bool
		chain          string
	}{
		{"iptables over nftables", "iptables-nft", false, "FORWARD"},
		{"Docker", "iptables-nft", true, "DOCKER-USER"},
		{"old iptables", "iptables-legacy", false, "FORWARD"},
		{"Docker on old iptables", "iptables-legacy", true, "DOCKER-USER"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			dockerLike(t, test.iptables, test.ownChain)
			w.outside.Answer(t, 80, "world")
			n := w.network(w.m, "default", api.NetworkSpec{})
			g, peer := w.guest(w.m, n), w.guest(w.m, n)
			g.Answer(t, 80, "guest")
			if err := w.m.SetForwards(t.Context(), g.Instance, []Forward{g.forward("tcp", 8080, 80)}); err != nil {
				t.Fatal(err)
			}
			check := func(when string) {
				t.Helper()
				if got, err := g.Ask("tcp", at(worldIP4, 80)); !strings.HasPrefix(got, "world") {
					t.Errorf("%s, out: %q, %v", when, got, err)
				}
				if got, err := w.outside.Ask("tcp", at(hostIP4, 8080)); !strings.HasPrefix(got, "guest") {
					t.Errorf("%s, in: %q, %v", when, got, err)
				}
				if got, err := peer.Ask("tcp", at(g.IPv4.String(), 80)); !strings.HasPrefix(got, "guest") {
					t.Errorf("%s, beside: %q, %v", when, got, err)
				}
				w.m.SetName(n.ID, "web", g.IPv4)
				v4, _ := w.m.Gateway(n)
				if got, _, err := lookup(g.Namespace, "udp", v4.String(), "web.", 1); len(got) != 1 {
					t.Errorf("%s, names: %v, %v", when, got, err)
				}
			}
			check("at first")
			if _, err := w.m.Ensure(t.Context(), n); err != nil {
				t.Fatal(err)
			}
			rules := run(t, test.iptables, "-S", test.chain)
			if got := strings.Count(rules, "cleave0"); !strings.Contains(rules, "-i cleave0") || got < 2 || got > 4 {
				t.Errorf("rules of %s: %s", test.chain, rules)
			}
			if err := w.m.Remove(t.Context(), n.ID); !api.IsCode(err, api.CodeInUse) {
				t.Fatal(err)
			}
			if err := w.m.Destroy(t.Context()); err != nil {
				t.Fatal(err)
			}
			if rules := run(t, test.iptables, "-S"); strings.Contains(rules, "cleave") {
				t.Errorf("left behind: %s", rules)
			}
		})
	}
}

func TestAFirewallThatComesLaterIsPassed(t *testing.T) {
	w := newWorld(t)
	w.outside.Answer(t, 80, "world")
	n := w.network(w.m, "default", api.NetworkSpec{})
	g := w.guest(w.m, n)
	dockerLike(t, "iptables-nft", true)
	for _, disturb := range []string{"", "-F DOCKER-USER"} {
		if disturb != "" {
			run(t, append([]string{"iptables-nft"}, strings.Fields(disturb)...)...)
		}
		deadline := time.Now().Add(nettest.Hang)
		for !strings.Contains(run(t, "iptables-nft", "-S", "DOCKER-USER"), "cleave0") && time.Now().Before(deadline) {
			time.Sleep(20 * time.Millisecond)
		}
		if got, err := g.Ask("tcp", at(worldIP4, 80)); !strings.HasPrefix(got, "world") {
			t.Errorf("after %q: got %q, %v", disturb, got, err)
		}
	}
}

func TestProbe(t *testing.T) {
	w := newWorld(t)
	states := func() map[string]string {
		all := map[string]string{}
		for _, f := range w.m.Probe(t.Context()) {
			if f.Area != "network" || f.State != "ok" && (f.Remedy == "" || f.Detail == "") {
				t.Errorf("finding %+v", f)
			}
			all[f.Name] = f.State
		}
		return all
	}
	got := states()
	for _, name := range []string{"bridges", "packet filter", "network rates", "IPv6", "name resolution", "other firewalls"} {
		if got[name] != "ok" {
			t.Errorf("%s: %q", name, got[name])
		}
	}
	run(t, "nft", "add", "table", "inet", "strict")
	t.Cleanup(func() { run(t, "nft", "delete", "table", "inet", "strict") })
	run(t, "nft", "add", "chain", "inet", "strict", "f", "{ type filter hook forward priority 0; policy drop; }")
	if got := states()["other firewalls"]; got != "limited" {
		t.Errorf("with a firewall that drops: %q", got)
	}
}
