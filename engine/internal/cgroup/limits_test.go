package cgroup

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cleave-project/cleave/api"
)

// fake is a tree of plain files in place of a host's hierarchies.
func fake(t *testing.T, v2 bool) (*Tree, *Group) {
	t.Helper()
	root := t.TempDir()
	tree := &Tree{parent: "p", unified: filepath.Join(root, "unified"), v1: map[string]string{}, on: map[string]bool{}, Refused: map[string]string{}, devices: -1}
	g := tree.Group("g")
	files := map[string]map[string]string{
		"cpu":    {"cpu.shares": "1024", "cpu.cfs_quota_us": "-1", "cpu.stat": "throttled_time 5"},
		"memory": {"memory.limit_in_bytes": "-1", "memory.memsw.limit_in_bytes": "-1", "memory.soft_limit_in_bytes": "-1"},
		"pids":   {"pids.max": "max"},
		"blkio": {
			"blkio.throttle.read_bps_device": "", "blkio.throttle.write_bps_device": "", "blkio.throttle.read_iops_device": "",
			"blkio.throttle.write_iops_device": "",
		},
	}
	if v2 {
		files = map[string]map[string]string{"unified": {
			"cpu.weight": "100", "cpu.max": "max 100000", "memory.low": "0", "memory.max": "max", "memory.swap.max": "max",
			"memory.oom.group": "0", "pids.max": "max", "cpuset.cpus": "", "io.max": "",
		}}
	}
	for h, fs := range files {
		if !v2 {
			tree.v1[h] = filepath.Join(root, h)
		}
		for name, content := range fs {
			put(t, filepath.Join(root, h, "p/g", name), content)
		}
	}
	if v2 {
		for _, c := range Controllers {
			tree.on[c] = true
		}
		put(t, filepath.Join(root, "unified/p/memory.swap.max"), "max")
	} else {
		put(t, filepath.Join(root, "memory/memory.memsw.limit_in_bytes"), "-1")
	}
	return tree, g
}

func put(t *testing.T, name, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestLimitsBecomeControlFiles(t *testing.T) {
	l := Limits{Devices: []string{"7:0"}, Together: true, Resources: api.Resources{
		CPUs: 1.5, CPUWeight: 200, Memory: 100 * api.MiB, MemorySoft: 50 * api.MiB, Swap: 10 * api.MiB, PIDs: 10,
		DiskRead: 1000, DiskWriteO: 20,
	}}
	for _, c := range []struct {
		name  string
		v2    bool
		l     Limits
		fresh bool
		want  []string
	}{
		{"version 1", false, l, true, []string{
			"cpu.shares 2048", "cpu.cfs_quota_us 150000", "memory.limit_in_bytes 104857600",
			"memory.memsw.limit_in_bytes 115343360", "memory.soft_limit_in_bytes 52428800", "pids.max 10",
			"blkio.throttle.read_bps_device 7:0 1000", "blkio.throttle.write_iops_device 7:0 20",
		}},
		{"version 2", true, l, true, []string{
			"cpu.weight 200", "cpu.max 150000 100000", "memory.low 52428800", "memory.max 104857600",
			"memory.swap.max 10485760", "memory.oom.group 1", "pids.max 10",
			"io.max 7:0 rbps=1000 wbps=max riops=max wiops=20",
		}},
		{"version 1, none", false, Limits{}, true, nil},
		{"version 2, none", true, Limits{}, true, []string{"memory.swap.max 0"}},
		{"version 1, lifted", false, Limits{}, false, []string{
			"cpu.shares 1024", "cpu.cfs_quota_us -1", "memory.limit_in_bytes -1", "memory.memsw.limit_in_bytes -1",
			"memory.soft_limit_in_bytes -1", "pids.max max",
		}},
		{"version 2, lifted", true, Limits{Devices: []string{"7:0"}}, false, []string{
			"cpu.weight 100", "cpu.max max 100000", "memory.low 0", "memory.max max", "memory.swap.max 0", "pids.max max",
			"cpuset.cpus \n", "io.max 7:0 rbps=max wbps=max riops=max wiops=max",
		}},
		{"a CPU too small", true, Limits{Resources: api.Resources{CPUs: 0.001}}, true, []string{"cpu.max 1000 100000", "memory.swap.max 0"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, g := fake(t, c.v2)
			var got []string
			for _, s := range g.settings(c.l, c.fresh) {
				got = append(got, s.name+" "+s.value)
			}
			slices.Sort(got)
			slices.Sort(c.want)
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestMemoryIsNeverAboveMemoryPlusSwap(t *testing.T) {
	_, g := fake(t, false)
	order := func(limit, now string) string {
		put(t, g.file("memory", "memory.memsw.limit_in_bytes"), now)
		var names []string
		for _, s := range g.memorySettings(Limits{Resources: api.Resources{Memory: api.Bytes(len(limit)) * api.GiB}}, false) {
			names = append(names, strings.TrimSuffix(strings.TrimPrefix(s.name, "memory."), ".limit_in_bytes"))
		}
		return strings.Join(names, " ")
	}
	if got := order("xxxx", "1073741824"); !strings.HasPrefix(got, "memsw ") {
		t.Errorf("raised in the order %s", got)
	}
	if got := order("x", "4294967296"); strings.HasPrefix(got, "memsw ") {
		t.Errorf("lowered in the order %s", got)
	}
}

func TestSetIsAllOrNothing(t *testing.T) {
	_, g := fake(t, true)
	if err := os.Remove(g.file("pids", "pids.max")); err != nil {
		t.Fatal(err)
	}
	err := g.Set(Limits{Resources: api.Resources{CPUs: 1, Memory: api.GiB, PIDs: 5}}, false)
	if !api.IsCode(err, api.CodeUnsupported) {
		t.Errorf("error %v", err)
	}
	for name, want := range map[string]string{"cpu.max": "max 100000", "memory.max": "max"} {
		// A plain file keeps what a shorter write doesn't reach.
		if b, _ := os.ReadFile(filepath.Join(g.V2(), name)); !strings.HasPrefix(string(b), want) {
			t.Errorf("%s is %q after a failure", name, b)
		}
	}
}

func TestMissingControllerIsAnErrorOnlyIfNeeded(t *testing.T) {
	tree, g := fake(t, true)
	tree.on["io"], tree.Refused["io"] = false, "not there"
	if err := g.Set(Limits{Devices: []string{"7:0"}, Resources: api.Resources{PIDs: 5}}, true); err != nil {
		t.Error(err)
	}
	err := g.Set(Limits{Devices: []string{"7:0"}, Resources: api.Resources{DiskRead: 5}}, true)
	if !api.IsCode(err, api.CodeUnsupported) || !strings.Contains(err.Error(), "not there") {
		t.Errorf("error %v", err)
	}
}

func TestStatsOfVersion2(t *testing.T) {
	_, g := fake(t, true)
	for name, content := range map[string]string{
		"cpu.stat":       "usage_usec 1500\nuser_usec 1\nthrottled_usec 7\n",
		"memory.current": "1000000\n", "memory.max": "2000000\n", "memory.swap.current": "5\n",
		"memory.stat":   "anon 1\nfile 300000\ninactive_file 200000\n",
		"memory.events": "low 0\noom 2\noom_kill 1\n", "pids.current": "3\n",
		"io.stat":      "7:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n254:0 rbytes=15 wbytes=5 rios=3 wios=1\n",
		"cpu.pressure": "some avg10=1.50 avg60=0 avg300=0 total=77\nfull avg10=0.25 avg60=0 avg300=0 total=7\n",
	} {
		put(t, filepath.Join(g.V2(), name), content)
	}
	var s api.Stats
	if err := g.Stats(&s); err != nil {
		t.Fatal(err)
	}
	want := api.Stats{
		CPUNanos: 1500000, ThrottledNanos: 7000, Memory: 800000, MemoryCache: 300000, MemoryLimit: 2000000, Swap: 5,
		OOMKills: 1, PIDs: 3, ReadBytes: 15, WriteBytes: 20, ReadOps: 3, WriteOps: 2,
		Pressure: map[string]api.Stall{"cpu": {Some10: 1.5, SomeTotal: 77, Full10: 0.25, FullTotal: 7}},
	}
	if d := cmp.Diff(want, s); d != "" {
		t.Error(d)
	}
}
