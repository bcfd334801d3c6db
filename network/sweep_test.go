package network

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/network/internal/nettest"
)

func TestSweepAfterACrashKeepsWhatIsWantedOnly(t *testing.T) { ends(t, sweep) }

func sweep(w *world) {
	t := w.T
	w.outside.Answer(t, 80, "world")
	n := w.network(w.m, "default", api.NetworkSpec{})
	gone := w.network(w.m, "gone", api.NetworkSpec{})
	stays, leaves, limited := w.guest(w.m, n), w.guest(w.m, n), w.guest(w.m, n)
	stays.Answer(t, 80, "stays")
	leaves.Answer(t, 80, "leaves")
	limited.In, limited.Out = api.MiB, api.MiB
	if err := w.m.SetRates(t.Context(), limited.Port); err != nil {
		t.Fatal(err)
	}
	for port, g := range map[uint16]*guest{8080: stays, 8081: leaves} {
		if err := w.m.SetForwards(t.Context(), g.Instance, []Forward{g.forward("tcp", port, 80)}); err != nil {
			t.Fatal(err)
		}
	}

	m := w.reopen(w.m)
	// Guests keep their network while no daemon runs, ...
	if got, err := w.outside.Ask("tcp", at(hostIP4, 8080)); !strings.HasPrefix(got, "stays") {
		t.Errorf("without a daemon: %q, %v", got, err)
	}
	// ... and somebody may flush everything meanwhile.
	run(t, "nft", "flush", "ruleset")
	if _, err := m.Ensure(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	limited.In, limited.Out = 0, 0
	keep := []Port{stays.Port, limited.Port}
	forwards := map[string][]Forward{stays.Instance: {stays.forward("tcp", 8080, 80)}}
	for range 2 {
		if err := m.Sweep(t.Context(), keep, forwards); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := w.outside.Ask("tcp", at(hostIP4, 8080)); !strings.HasPrefix(got, "stays") {
		t.Errorf("what stays: %q, %v", got, err)
	}
	if got, err := stays.Ask("tcp", at(worldIP6, 80)); !strings.HasPrefix(got, "world") {
		t.Errorf("out of what stays: %q, %v", got, err)
	}
	if got, err := w.outside.Ask("tcp", at(hostIP4, 8081)); err == nil {
		t.Errorf("what leaves: %q", got)
	}
	if l, err := net.Listen("tcp", ":8080"); err == nil {
		_ = l.Close()
		t.Error("the port that stays isn't reserved")
	}
	links := run(t, "ip", "-o", "link")
	for link, want := range map[string]bool{
		stays.Link: true, limited.Link: true, leaves.Link: false, limited.shaper(): false, gone.Status.Bridge: false, "cleave0": true,
	} {
		if got := strings.Contains(links, " "+link+":") || strings.Contains(links, " "+link+"@"); got != want {
			t.Errorf("link %s: %v, want %v", link, got, want)
		}
	}
	if out := run(t, "ip", "neighbour", "show", "dev", "cleave0", "nud", "permanent"); strings.Contains(out, leaves.IPv4.String()) {
		t.Errorf("neighbours: %s", out)
	}
	if out := run(t, "tc", "qdisc", "show", "dev", limited.Link); strings.Contains(out, "tbf") || strings.Contains(out, "ingress") {
		t.Errorf("limits that were lifted: %s", out)
	}
	if got, err := m.Counters([]string{stays.Link}); err != nil || got[stays.Link].RxBytes == 0 {
		t.Errorf("counters: %v, %v", got, err)
	}
}

func TestSweepKeepsForwardsWhosePortIsTaken(t *testing.T) {
	w := newWorld(t)
	n := w.network(w.m, "default", api.NetworkSpec{})
	g := w.guest(w.m, n)
	g.Answer(t, 80, "guest")
	m := w.reopen(w.m)
	l, err := net.Listen("tcp4", ":8080") // while no daemon held it
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if _, err := m.Ensure(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	err = m.Sweep(t.Context(), []Port{g.Port}, map[string][]Forward{g.Instance: {g.forward("tcp", 8080, 80)}})
	if !api.IsCode(err, api.CodeConflict) {
		t.Errorf("got %v", err)
	}
	if got, err := w.outside.Ask("tcp", at(hostIP4, 8080)); !strings.HasPrefix(got, "guest") {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestFlushedRulesComeBack(t *testing.T) {
	w := newWorld(t)
	w.outside.Answer(t, 80, "world")
	n := w.network(w.m, "default", api.NetworkSpec{})
	g := w.guest(w.m, n)
	g.Answer(t, 80, "guest")
	if err := w.m.SetForwards(t.Context(), g.Instance, []Forward{g.forward("tcp", 8080, 80)}); err != nil {
		t.Fatal(err)
	}
	run(t, "nft", "flush", "ruleset")
	deadline := time.Now().Add(nettest.Hang)
	for {
		elements, err := w.m.tables.Elements()
		if err == nil && len(elements) == len(w.m.elements()) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("nothing came back: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if got, err := w.outside.Ask("tcp", at(hostIP4, 8080)); !strings.HasPrefix(got, "guest") {
		t.Errorf("got %q, %v", got, err)
	}
}
