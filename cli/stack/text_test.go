package stack

import (
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

func TestOnlySizesGetUnits(t *testing.T) {
	spec := api.InstanceSpec{
		Image: "base", ShmSize: api.MiB, Root: api.RootDisk{Size: api.GiB}, Resources: api.Resources{Memory: api.GiB, PIDs: 1024},
		Ulimits: map[string]api.Ulimit{"nofile": {Soft: 1024, Hard: 4096}},
	}
	want := `spec:
  image: base
  resources:
    memory: 1GiB
    pids: 1024
  root:
    size: 1GiB
  shmSize: 1MiB
  ulimits:
    nofile:
      hard: 4096
      soft: 1024
`
	doc := document(nil, spec)
	if diff := cmp.Diff(want, text(doc, spec)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(document(nil, spec), doc); diff != "" {
		t.Errorf("the document was changed: %s", diff)
	}
}
