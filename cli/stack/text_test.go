package stack

import (
	"strings"
	"testing"

	"github.com/cleave-project/cleave/api"
	"github.com/google/go-cmp/cmp"
)

func TestSizesInADiffAreExact(t *testing.T) {
	for b, want := range map[api.Bytes]string{
		1: "1B", 1000: "1000B", 1024: "1KiB", 128 * api.MiB: "128MiB", 1025 * api.MiB: "1025MiB",
		1536 * api.MiB: "1536MiB", 10 * api.GiB: "10GiB", 10*api.GiB + 1: "10737418241B", 3 * api.TiB: "3TiB",
	} {
		got := b.Exact()
		back, err := api.ParseBytes(got)
		if got != want || back != b || err != nil {
			t.Errorf("%d is written %s, which is read as %d, %v", int64(b), got, int64(back), err)
		}
	}
}

func TestADiffIsInTheFormOfTheFile(t *testing.T) {
	seconds, own := 90, false
	spec := api.InstanceSpec{
		Image: "base", Command: []string{"sh", "-c", "echo a b"}, Env: map[string]string{"A": "1", "B": "x y"}, Init: &own, StopSeconds: &seconds, ShmSize: api.MiB,
		Root:      api.RootDisk{Size: api.GiB + 1},
		Resources: api.Resources{Memory: api.GiB, PIDs: 1024, CPUs: 0.5, NetOut: 10 * api.MiB},
		Mounts:    []api.Mount{{Volume: "data", Target: "/data"}, {HostPath: "/srv", Target: "/srv", ReadOnly: true}},
		NICs:      []api.NIC{{}, {Network: "back", IPv4: "10.9.0.5", MAC: "02:00:00:00:00:01", Name: "lan"}},
		Publish:   []api.Publish{{HostPort: 80, GuestPort: 8080}, {HostIP: "::1", HostPort: 53, GuestPort: 53, Protocol: "udp"}},
		Health:    &api.HealthCheck{Command: []string{"sh", "-c", "true"}, IntervalSeconds: 5},
		Ulimits:   map[string]api.Ulimit{"nofile": {Soft: 1024, Hard: -1}},
		Security:  api.Security{AddCapabilities: []string{"NET_RAW"}, ReadOnlyRoot: true},
	}
	want := `cap.add:
  - NET_RAW
command:
  - sh
  - -c
  - echo a b
cpus: 0.5
disk: 1073741825B
env:
  A: "1"
  B: x y
health.command:
  - sh
  - -c
  - "true"
health.interval: 5s
image: base
memory: 1GiB
net.out: 10MiB/s
networks:
  - default
  - back:ip=10.9.0.5,mac=02:00:00:00:00:01,name=lan
pids: 1024
publish:
  - 80:8080
  - '[::1]:53:53/udp'
read-only: true
shm-size: 1MiB
stop.timeout: 90s
system: false
ulimits:
  nofile: 1024:unlimited
volumes:
  - data:/data
  - /srv:/srv:ro
`
	got := text("instance", document(nil, Normal(spec)))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for name, spec := range map[string]api.InstanceSpec{
		"all": spec, "no port": {Image: "base", NICs: []api.NIC{}}, "no check": {Image: "base", Health: &api.HealthCheck{Command: []string{}}},
	} {
		back := parse(t, "name: shop\ninstances:\n  a:\n    "+strings.ReplaceAll(strings.TrimSpace(text("instance", document(nil, Normal(spec)))), "\n", "\n    ")+"\n")
		if diff := cmp.Diff(document(nil, Normal(spec)), document(nil, Normal(back.Instances[0].Spec))); diff != "" {
			t.Errorf("%s: a file with that says something else: %s", name, diff)
		}
	}
}
