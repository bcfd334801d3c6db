package api

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestChangesNameDevices(t *testing.T) {
	from := InstanceSpec{
		Mounts: []Mount{{Volume: "a", Target: "/a"}, {Volume: "b", Target: "/b"}, {Volume: "c", Target: "/c"}},
		NICs:   []NIC{{}, {Network: "back", Name: "lan"}},
	}
	to := InstanceSpec{
		Mounts: []Mount{{Volume: "c", Target: "/c", ReadOnly: true}, {Volume: "b", Target: "/b"}, {HostPath: "/srv", Target: "/d"}},
		NICs:   []NIC{{Network: "default", Name: "eth0"}, {Network: "front", IPv4: "10.0.0.5", MAC: "02:00:00:00:00:01"}},
	}
	var got []string
	for _, c := range from.Changes(&to) {
		got = append(got, c.String())
	}
	want := []string{
		"mounts./a a -> none", "mounts./c c -> c:ro", "mounts./d none -> /srv",
		"nics.eth1 none -> front:ip=10.0.0.5 mac=02:00:00:00:00:01", "nics.lan back -> none",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestSpecsThatMeanTheSameDoNotDiffer(t *testing.T) {
	for name, specs := range map[string][2]InstanceSpec{
		"no ports said":   {{}, {NICs: []NIC{{Network: "default"}}}},
		"no volumes":      {{}, {Mounts: []Mount{}}},
		"order of mounts": {{Mounts: []Mount{{Volume: "a", Target: "/a"}, {Volume: "b", Target: "/b"}}}, {Mounts: []Mount{{Volume: "b", Target: "/b"}, {Volume: "a", Target: "/a"}}}},
	} {
		if got := specs[0].Changes(&specs[1]); len(got) != 0 {
			t.Errorf("%s: %v", name, got)
		}
	}
	one, other := InstanceSpec{NICs: []NIC{{Name: "a"}, {Name: "b"}}}, InstanceSpec{NICs: []NIC{{Name: "b"}, {Name: "a"}}}
	if diff := cmp.Diff([]Change{{Path: "nics"}}, one.Changes(&other)); diff != "" {
		t.Errorf("the first port has the default route: %s", diff)
	}
	none := InstanceSpec{NICs: []NIC{}}
	if diff := cmp.Diff([]Change{{"nics.eth0", "default", "none"}}, (&InstanceSpec{}).Changes(&none)); diff != "" {
		t.Error(diff)
	}
}
