package network

import (
	"net/netip"
	"testing"

	"github.com/cleave-project/cleave/api"
)

func TestAllocate(t *testing.T) {
	w := &Manager{cursors: map[cursor]uint64{}}
	n := &api.Network{
		Meta:   api.Meta{ID: "n", Name: "lab"},
		Status: api.NetworkStatus{IPv4: "10.9.0.1/29", IPv6: "fd00::1/64"},
	}
	taken := map[netip.Addr]bool{}
	used := func(a netip.Addr) bool { return taken[a] }
	next := func() (string, string) {
		t.Helper()
		v4, v6, err := w.Allocate(n, used, "", "")
		if err != nil {
			t.Fatal(err)
		}
		taken[v4.Addr()], taken[v6.Addr()] = true, true
		return v4.String(), v6.String()
	}
	for _, want := range []string{"2", "3", "4"} {
		if v4, v6 := next(); v4 != "10.9.0."+want+"/29" || v6 != "fd00::"+want+"/64" {
			t.Errorf("got %s, %s, want %s", v4, v6, want)
		}
	}
	// What has just been freed comes last.
	delete(taken, netip.MustParseAddr("10.9.0.3"))
	taken[netip.MustParseAddr("fd00::5")] = true
	if v4, v6 := next(); v4 != "10.9.0.5/29" || v6 != "fd00::6/64" {
		t.Errorf("got %s, %s", v4, v6)
	}
	if v4, _ := next(); v4 != "10.9.0.6/29" {
		t.Errorf("got %s", v4)
	}
	if v4, _ := next(); v4 != "10.9.0.3/29" {
		t.Errorf("got %s", v4)
	}
	if _, _, err := w.Allocate(n, used, "", ""); !api.IsCode(err, api.CodeNoResources) {
		t.Errorf("of a full subnet: %v", err)
	}
	if v4, v6, err := w.Allocate(&api.Network{Meta: api.Meta{ID: "none"}}, used, "", ""); v4.IsValid() || v6.IsValid() || err != nil {
		t.Errorf("of a network without subnets: %v %v %v", v4, v6, err)
	}
}

func TestAllocateFixed(t *testing.T) {
	w := &Manager{cursors: map[cursor]uint64{}}
	n := &api.Network{Meta: api.Meta{ID: "n", Name: "lab"}, Status: api.NetworkStatus{IPv4: "10.9.0.1/24", IPv6: "fd00::1/64"}}
	used := func(a netip.Addr) bool { return a == netip.MustParseAddr("10.9.0.7") }
	for _, test := range []struct {
		fixed4, fixed6 string
		code           api.Code // empty for success
	}{
		{"10.9.0.9", "fd00::abcd:1:2:3", ""},
		{"10.9.0.7", "", api.CodeConflict},
		{"10.9.0.1", "", api.CodeInvalid},
		{"10.9.0.0", "", api.CodeInvalid},
		{"10.9.0.255", "", api.CodeInvalid},
		{"10.9.1.1", "", api.CodeInvalid},
		{"fd00::2", "", api.CodeInvalid},
		{"web", "", api.CodeInvalid},
		{"", "fd00::", api.CodeInvalid},
		{"", "::ffff:10.9.0.9", api.CodeInvalid},
		{"", "fd01::2", api.CodeInvalid},
	} {
		v4, v6, err := w.Allocate(n, used, test.fixed4, test.fixed6)
		if test.code != "" {
			if !api.IsCode(err, test.code) {
				t.Errorf("%s %s: got %v %v %v", test.fixed4, test.fixed6, v4, v6, err)
			}
			continue
		}
		if err != nil || v4.Addr().String() != test.fixed4 || v6.Addr().String() != test.fixed6 {
			t.Errorf("%s %s: got %v %v %v", test.fixed4, test.fixed6, v4, v6, err)
		}
	}
	only4 := &api.Network{Meta: api.Meta{ID: "o"}, Status: api.NetworkStatus{IPv4: "10.9.0.1/24"}}
	if _, _, err := w.Allocate(only4, used, "", "fd00::2"); !api.IsCode(err, api.CodeInvalid) {
		t.Errorf("an address of a family that the network lacks: %v", err)
	}
}
