package nft

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"

	"github.com/cleave-project/cleave/network/internal/nettest"
)

func TestMain(m *testing.M) { nettest.Main(m) }

// open makes tables that are gone when the test ends.
func open(t *testing.T, scope string) *Tables {
	t.Helper()
	tables, err := Open(scope, 77)
	if err != nil {
		t.Fatal(err)
	}
	if err := tables.Load(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tables.Delete(); err != nil {
			t.Error(err)
		}
		if err := tables.Close(); err != nil {
			t.Error(err)
		}
	})
	return tables
}

var (
	mac   = net.HardwareAddr{2, 0, 0, 0, 0, 7}
	addr4 = netip.MustParseAddr("10.83.0.2")
	addr6 = netip.MustParseAddr("fd00::2")
)

// sample has elements of every set.
func sample() []Element {
	return slices.Concat(
		Network("cleave0", mac, []netip.Addr{netip.MustParseAddr("10.83.0.1"), netip.MustParseAddr("fd00::1")}, true),
		Network("clvlab", mac, nil, false),
		Guest("caaaaaaaaaan0", mac, []netip.Addr{addr4, addr6}),
		[]Element{
			Forward(netip.Addr{}, TCP, 8080, addr4, 80),
			Forward(netip.Addr{}, TCP, 8080, addr6, 80),
			Forward(netip.MustParseAddr("192.0.2.1"), UDP, 53, addr4, 5353),
			Forward(netip.MustParseAddr("2001:db8::1"), UDP, 53, addr6, 5353),
		})
}

func elements(t *testing.T, tables *Tables) map[Element]bool {
	t.Helper()
	got, err := tables.Elements()
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func asSet(e []Element) map[Element]bool {
	all := map[Element]bool{}
	for _, x := range e {
		all[x] = true
	}
	return all
}

var comparable = cmp.AllowUnexported(Element{})

func TestElementsComeBackAsTheyWereWritten(t *testing.T) {
	tables := open(t, "")
	if err := tables.Apply(sample(), nil); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(asSet(sample()), elements(t, tables), comparable); diff != "" {
		t.Error(diff)
	}
	out, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
	if err != nil {
		t.Skipf("nft(8) is not installed: %v", err)
	}
	for _, want := range []string{
		`"cleave0"`, `"caaaaaaaaaan0" . 02:00:00:00:00:07 . 10.83.0.2`, "tcp . 8080 : 10.83.0.2 . 80",
		"2001:db8::1 . udp . 53 : fd00::2 . 5353",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("nft(8) doesn't show %q: %s", want, out)
		}
	}
}

func TestLoadKeepsElementsOfTheSameSchemaOnly(t *testing.T) {
	tables := open(t, "")
	if err := tables.Apply(sample(), nil); err != nil {
		t.Fatal(err)
	}
	if err := tables.Load(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(asSet(sample()), elements(t, tables), comparable); diff != "" {
		t.Error(diff)
	}
	// Tables of another version of ours, with the same name.
	nettest.Here(t, "nft", "delete table inet cleave; delete table bridge cleave; add table inet cleave; "+
		"add set inet cleave bridges { type ipv4_addr; }; add table bridge cleave")
	if present, err := tables.Present(); present || err != nil {
		t.Errorf("present: %v, %v", present, err)
	}
	if err := tables.Load(); err != nil {
		t.Fatal(err)
	}
	if got := elements(t, tables); len(got) != 0 {
		t.Errorf("got %v", got)
	}
}

func TestApplyCopesWithWhatOthersDid(t *testing.T) {
	tables := open(t, "")
	if err := tables.Apply(sample(), nil); err != nil {
		t.Fatal(err)
	}
	moved := Forward(netip.Addr{}, TCP, 8080, netip.MustParseAddr("10.83.0.3"), 80)
	movedSample := slices.DeleteFunc(sample(), func(e Element) bool { return e.set == "any4" || e.set == "pairs" && e == sample()[1] })
	movedSample = append(movedSample, moved)
	for _, step := range []struct {
		name        string
		disturb     string
		add, remove []Element
		want        []Element
	}{
		{"added twice", "", sample(), nil, sample()},
		{"removed by somebody", "delete element inet cleave bridges { cleave0 }", nil, sample()[:2], sample()[2:]},
		{"a key with another value", "add element inet cleave bridges { cleave0 }", []Element{moved}, nil, movedSample},
		{"everything flushed", "flush ruleset", sample(), nil, sample()},
		{"flushed before a removal", "flush ruleset", nil, sample(), []Element{}},
	} {
		t.Run(step.name, func(t *testing.T) {
			if step.disturb != "" {
				nettest.Here(t, "nft", step.disturb)
			}
			err := tables.Apply(step.add, step.remove)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(asSet(step.want), elements(t, tables), comparable); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestReconcileWritesTheDifference(t *testing.T) {
	tables := open(t, "0a1b2c")
	for _, step := range []struct {
		want    []Element
		changed int
	}{
		{sample(), len(asSet(sample()))},
		{sample(), 0},
		{sample()[1:], 1},
		{nil, len(asSet(sample()[1:]))},
	} {
		changed, err := tables.Reconcile(slices.Collect(keys(asSet(step.want))))
		if changed != step.changed || err != nil {
			t.Errorf("changed %d, %v, want %d", changed, err, step.changed)
		}
		if diff := cmp.Diff(asSet(step.want), elements(t, tables), comparable); diff != "" {
			t.Error(diff)
		}
	}
}

func keys(m map[Element]bool) func(func(Element) bool) {
	return func(yield func(Element) bool) {
		for e := range m {
			if !yield(e) {
				return
			}
		}
	}
}

func TestThousandsOfElementsFitOneTransaction(t *testing.T) {
	tables := open(t, "")
	var all []Element
	a4, a6 := netip.MustParseAddr("10.83.0.1"), netip.MustParseAddr("fd00::1")
	for n := range 2000 {
		a4, a6 = a4.Next(), a6.Next()
		all = append(all, Guest(fmt.Sprintf("c%010dn0", n), mac, []netip.Addr{a4, a6})...)
	}
	start := time.Now()
	if changed, err := tables.Reconcile(all); err != nil || changed != len(all) {
		t.Fatalf("changed %d, %v", changed, err)
	}
	t.Logf("%d elements in %v", len(all), time.Since(start))
	if changed, err := tables.Reconcile(nil); err != nil || changed != len(all) {
		t.Fatalf("changed %d, %v", changed, err)
	}
}

func TestScopesDontMeet(t *testing.T) {
	a, b := open(t, ""), open(t, "0a1b2c")
	if err := a.Apply(sample(), nil); err != nil {
		t.Fatal(err)
	}
	if got := elements(t, b); len(got) != 0 {
		t.Errorf("got %v", got)
	}
	if err := b.Delete(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(asSet(sample()), elements(t, a), comparable); diff != "" {
		t.Error(diff)
	}
}

func TestWatchTellsOfLossAndOfOthersChains(t *testing.T) {
	tables := open(t, "")
	ctx, cancel := context.WithCancel(t.Context())
	events := make(chan bool, 16)
	ended := make(chan error)
	go func() { ended <- tables.Watch(ctx, func(lost bool) { events <- lost }) }()
	expect := func(want bool, command string) {
		t.Helper()
		deadline := time.After(nettest.Hang)
		for {
			// Repeated, since the watch may not have begun at the first.
			nettest.Here(t, "nft", command)
			select {
			case got := <-events:
				if got != want {
					t.Errorf("%s: %v", command, got)
				}
				return
			case <-deadline:
				t.Fatalf("%s: unnoticed", command)
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
	expect(false, "add table inet other; add chain inet other x; delete table inet other")
	nettest.Here(t, "nft", "flush ruleset")
	for got := range events {
		if got {
			break
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestAFailedTransactionLeavesTheConnectionUsable(t *testing.T) {
	tables := open(t, "")
	bad := []Element{{"bridges", "short", ""}}
	if err := tables.Apply(bad, nil); err == nil {
		t.Error("an element of the wrong size was taken")
	}
	if err := tables.Apply(sample(), nil); err != nil {
		t.Error(err)
	}
	if err := tables.commit(func(c *nftables.Conn) error { return context.Canceled }); err == nil {
		t.Error("the builder's error is lost")
	}
	if diff := cmp.Diff(asSet(sample()), elements(t, tables), comparable); diff != "" {
		t.Error(diff)
	}
}
