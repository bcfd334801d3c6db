package network

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/network/internal/nettest"
)

func TestAttachMakesThePortAsAsked(t *testing.T) {
	w := newWorld(t)
	n := w.network(w.m, "default", api.NetworkSpec{MTU: 1400})
	g := w.guest(w.m, n)
	inside := g.Run("ip", "link", "show", "eth0")
	if !strings.Contains(inside, g.MAC.String()) || !strings.Contains(inside, "mtu 1400") {
		t.Errorf("inside: %s", inside)
	}
	outside := run(t, "ip", "-d", "address", "show", g.Link)
	for _, want := range []string{"master cleave0", "learning off", "flood off", "hairpin on"} {
		if !strings.Contains(outside, want) {
			t.Errorf("no %q outside: %s", want, outside)
		}
	}
	if strings.Contains(outside, "inet") {
		t.Errorf("the host's end has an address: %s", outside)
	}
}

func TestAttachReplacesAPortOfTheSameName(t *testing.T) {
	w := newWorld(t)
	n := w.network(w.m, "default", api.NetworkSpec{})
	g := w.guest(w.m, n)
	p := g.Port
	p.IPv4, p.IPv6 = netip.MustParseAddr("10.83.7.7"), netip.Addr{}
	again := &guest{Namespace: nettest.New(t), Port: p}
	if err := w.m.Attach(t.Context(), p, again.PID); err != nil {
		t.Fatal(err)
	}
	again.setUp(&api.Network{Status: api.NetworkStatus{IPv4: n.Status.IPv4}})
	w.outside.Answer(t, 80, "world")
	if got, err := again.Ask("tcp", at(worldIP4, 80)); err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if changed, err := w.m.tables.Reconcile(w.m.elements()); changed != 0 || err != nil {
		t.Errorf("%d elements were wrong, %v", changed, err)
	}
}

func TestAttachThatFailsLeavesNothing(t *testing.T) {
	w := newWorld(t)
	n := w.network(w.m, "default", api.NetworkSpec{})
	ns := nettest.New(t)
	good := Port{Network: n.ID, Instance: "i", Link: "caaaaaaaaaan0", Name: "eth0", MAC: testMAC("x"), IPv4: netip.MustParseAddr("10.83.0.9")}
	with := func(change func(*Port)) Port { p := good; change(&p); return p }
	for _, test := range []struct {
		name string
		port Port
		pid  int
		code api.Code
	}{
		{"no such process", good, 1<<22 - 1, api.CodeInternal},
		{"name taken in the guest", with(func(p *Port) { p.Name = "lo" }), ns.PID, api.CodeConflict},
		{"unknown network", with(func(p *Port) { p.Network = "none" }), ns.PID, api.CodeNotFound},
		{"address of another network", with(func(p *Port) { p.IPv4 = netip.MustParseAddr("10.84.0.2") }), ns.PID, api.CodeInvalid},
		{"gateway's address", with(func(p *Port) { p.IPv4 = netip.MustParseAddr("10.83.0.1") }), ns.PID, api.CodeInvalid},
		{"multicast MAC", with(func(p *Port) { p.MAC = broadcast }), ns.PID, api.CodeInvalid},
		{"gateway's MAC", with(func(p *Port) { p.MAC = bridgeMAC("", n.ID) }), ns.PID, api.CodeInvalid},
		{"long link name", with(func(p *Port) { p.Link = "abcdefghijklmno" }), ns.PID, api.CodeInvalid},
		{"large mtu", with(func(p *Port) { p.MTU = 9000 }), ns.PID, api.CodeInvalid},
		{"negative rate", with(func(p *Port) { p.In = -1 }), ns.PID, api.CodeInvalid},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := w.m.Attach(t.Context(), test.port, test.pid)
			if api.AsError(err) == nil || api.AsError(err).Code != test.code {
				t.Errorf("got %v", err)
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

func TestAttachRefusesWhatAnotherPortHas(t *testing.T) {
	w := newWorld(t)
	n := w.network(w.m, "default", api.NetworkSpec{})
	g := w.guest(w.m, n)
	ns := nettest.New(t)
	for name, change := range map[string]func(*Port){
		"MAC":  func(p *Port) { p.MAC = g.MAC },
		"IPv4": func(p *Port) { p.IPv4 = g.IPv4 },
		"IPv6": func(p *Port) { p.IPv6 = g.IPv6 },
	} {
		p := Port{Network: n.ID, Instance: "i", Link: "caaaaaaaaaan0", Name: "eth0", MAC: testMAC("x"), IPv4: netip.MustParseAddr("10.83.0.9")}
		change(&p)
		if err := w.m.Attach(t.Context(), p, ns.PID); !api.IsCode(err, api.CodeConflict) || !strings.Contains(err.Error(), g.Instance) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// A bridge is full at 1023 ports; what comes then is told so.
func TestABridgeTakesAThousandPorts(t *testing.T) {
	w := newWorld(t)
	n := w.network(w.m, "default", api.NetworkSpec{})
	ns := nettest.New(t)
	var ports []Port
	var times []time.Duration
	for i := range 1024 {
		v4, v6, err := w.m.Allocate(n, func(netip.Addr) bool { return false }, "", "")
		if err != nil {
			t.Fatal(err)
		}
		p := Port{
			Network: n.ID, Instance: fmt.Sprint(i), Link: fmt.Sprintf("c%010dn0", i), Name: fmt.Sprintf("eth%d", i),
			MAC: []byte{2, 0, 0, 0, byte(i >> 8), byte(i)}, IPv4: v4.Addr(), IPv6: v6.Addr(),
		}
		start := time.Now()
		err = w.m.Attach(t.Context(), p, ns.PID)
		times = append(times, time.Since(start))
		if i == 1023 {
			if !api.IsCode(err, api.CodeNoResources) {
				t.Errorf("port 1024: %v", err)
			}
			break
		}
		if err != nil {
			t.Fatalf("port %d: %v", i+1, err)
		}
		ports = append(ports, p)
	}
	slices.Sort(times)
	start := time.Now()
	if _, err := w.m.Counters([]string{ports[0].Link, ports[1].Link}); err != nil {
		t.Error(err)
	}
	few := time.Since(start)
	m := w.reopen(w.m)
	if _, err := m.Ensure(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	start = time.Now()
	if err := m.Sweep(t.Context(), ports, nil); err != nil {
		t.Error(err)
	}
	swept := time.Since(start)
	links := make([]string, len(ports))
	for i, p := range ports {
		links[i] = p.Link
	}
	start = time.Now()
	if got, err := m.Counters(links); len(got) != len(ports) || err != nil {
		t.Errorf("counters of %d links, %v", len(got), err)
	}
	t.Logf("attach p50 %v p99 %v; sweep of %d %v; counters of two %v, of all %v",
		times[len(times)/2], times[len(times)*99/100], len(ports), swept, few, time.Since(start))
}

func TestDetachLeavesNothing(t *testing.T) {
	w := newWorld(t)
	n := w.network(w.m, "default", api.NetworkSpec{})
	g, stays := w.guest(w.m, n), w.guest(w.m, n)
	stays.Answer(t, 80, "stays")
	// The guest's namespace is kept by somebody: the port is closed at once
	// all the same, and its link goes later.
	for range 2 {
		if err := w.m.Detach(t.Context(), g.Port); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := g.Ask("tcp", at(stays.IPv4.String(), 80)); err == nil {
		t.Errorf("a detached port passes: %q", got)
	}
	if out := run(t, "ip", "neighbour", "show", "dev", "cleave0", "nud", "permanent"); strings.Contains(out, g.IPv4.String()) {
		t.Errorf("neighbours: %s", out)
	}
	if changed, err := w.m.tables.Reconcile(w.m.elements()); changed != 0 || err != nil {
		t.Errorf("%d elements were wrong, %v", changed, err)
	}
	deadline := time.Now().Add(leaveTime + nettest.Hang)
	for _, err := os.Stat("/proc/thread-self/net/dev_snmp6/" + g.Link); err == nil; _, err = os.Stat("/proc/thread-self/net/dev_snmp6/" + g.Link) {
		if time.Now().After(deadline) {
			t.Fatal("the link of a detached port is never removed")
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func TestCountersAreTheGuests(t *testing.T) {
	w := newWorld(t)
	n := w.network(w.m, "default", api.NetworkSpec{})
	a, b := w.guest(w.m, n), w.guest(w.m, n)
	out := a.Raw(t, "eth0")
	frame := ether(b.MAC, a.MAC, 0x0800, udp4(a.IPv4, b.IPv4, 9, 9, make([]byte, 1000)))
	before, err := w.m.Counters([]string{a.Link, b.Link, "nothing"})
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		out.Send(t, frame)
	}
	var after map[string]Counters
	var sent, received uint64
	for end := time.Now().Add(nettest.Hang); received < 50_000 && time.Now().Before(end); time.Sleep(time.Millisecond) {
		if after, err = w.m.Counters([]string{a.Link, b.Link, "nothing"}); err != nil {
			t.Fatal(err)
		}
		sent, received = after[a.Link].TxBytes-before[a.Link].TxBytes, after[b.Link].RxBytes-before[b.Link].RxBytes
	}
	if sent < 50_000 || sent > 60_000 || received < 50_000 || received > 60_000 || len(after) != 2 {
		t.Errorf("sent %d, received %d, of %d links", sent, received, len(after))
	}
	// A dump says the same as single questions.
	all, err := w.m.rt.AllStats()
	if err != nil {
		t.Fatal(err)
	}
	one, err := w.m.rt.Stats(w.m.ports[a.Link].index)
	if diff := cmp.Diff(all[w.m.ports[a.Link].index], one); diff != "" || err != nil {
		t.Error(err, diff)
	}
}

func BenchmarkAttachDetach(b *testing.B) {
	m, err := Open(context.Background(), Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := m.Destroy(context.Background()); err != nil {
			b.Error(err)
		}
	})
	n := &api.Network{Meta: api.Meta{ID: "bench", Name: "default"}}
	if n.Status, err = m.Ensure(context.Background(), n); err != nil {
		b.Fatal(err)
	}
	ns := nettest.New(b)
	port := func(i int) Port {
		v4, v6, err := m.Allocate(n, func(netip.Addr) bool { return false }, "", "")
		if err != nil {
			b.Fatal(err)
		}
		return Port{
			Network: n.ID, Instance: fmt.Sprint(i), Link: fmt.Sprintf("c%09dn0", i), Name: fmt.Sprintf("eth%d", i),
			MAC: testMAC(fmt.Sprint(i)), IPv4: v4.Addr(), IPv6: v6.Addr(),
		}
	}
	var attach, detach time.Duration
	i := 0
	for b.Loop() {
		p := port(i)
		i++
		start := time.Now()
		if err := m.Attach(context.Background(), p, ns.PID); err != nil {
			b.Fatal(err)
		}
		attached := time.Now()
		if i%2 == 0 { // others stay, so that the bridge fills
			if err := m.Detach(context.Background(), p); err != nil {
				b.Fatal(err)
			}
			detach += time.Since(attached)
		}
		attach += attached.Sub(start)
	}
	b.ReportMetric(float64(attach.Microseconds())/float64(i)/1000, "ms/attach")
	b.ReportMetric(float64(detach.Microseconds())/float64(i/2)/1000, "ms/detach")
}
