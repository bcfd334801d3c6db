package cli

import (
	"bytes"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/cli/output"
)

func samples() (before, now []api.Stats) {
	at := func(id string, t time.Time, cpu, rx uint64) api.Stats {
		return api.Stats{ID: id, Name: "guest-" + id, Time: t, CPUNanos: cpu, RxBytes: rx, Memory: 100 * api.MiB, MemoryLimit: 128 * api.MiB, PIDs: 3}
	}
	before = []api.Stats{at("a", epoch, 1e9, 0), at("b", epoch, 5e9, 1000), at("gone", epoch, 0, 0)}
	now = []api.Stats{at("a", epoch.Add(2*time.Second), 4e9, 3<<20), at("b", epoch.Add(2*time.Second), 1e9, 0), at("new", epoch.Add(2*time.Second), 9e9, 9e9)}
	now[0].Pressure = map[string]api.Stall{"cpu": {Some10: 31}, "io": {Some10: 2}}
	now[2].Name = "数据库-with-a-name-that-is-long-enough-to-be-cut-on-a-narrow-terminal"
	return before, now
}

func TestUsageComparesTwoSamples(t *testing.T) {
	before, now := samples()
	got := usages(before, now)
	if len(got) != 3 || got[0].CPU != 150 || got[0].In != 1.5*(1<<20) {
		t.Errorf("%+v", got[0])
	}
	for _, u := range got[1:] {
		if u.CPU != 0 || u.In != 0 {
			t.Errorf("%s was restarted or is new, and uses %v", u.Name, u.CPU)
		}
	}
}

func TestTopFitsTheScreen(t *testing.T) {
	s := &topScreen{host: &api.HostInfo{Host: "box", CPUs: 2, Memory: 24 * api.GiB}, key: sortKeys[0], clock: epoch, width: 80, height: 24}
	s.before, s.now = samples()
	golden(t, "top.80", strings.Join(s.lines(), "\n")+"\n")
	for _, size := range [][2]int{{80, 24}, {70, 10}, {60, 4}, {40, 20}, {200, 50}} {
		s.width, s.height = size[0], size[1]
		frame := s.frame()
		lines := strings.Split(strings.TrimPrefix(frame, "\x1b[H"), "\r\n")
		if len(lines) > s.height || !strings.HasSuffix(frame, "\x1b[K\x1b[J") {
			t.Errorf("%v: %d lines", size, len(lines))
		}
		for _, l := range lines {
			if w := output.Width(strings.NewReplacer("\x1b[K", "", "\x1b[J", "").Replace(l)); w > s.width {
				t.Errorf("%v: %d columns: %q", size, w, l)
			}
		}
	}
}

func TestTopSortsByKeys(t *testing.T) {
	s := &topScreen{host: &api.HostInfo{}, key: sortKeys[0], width: 80, height: 24}
	s.before, s.now = samples()
	first := func() string { return strings.Fields(s.lines()[4])[0] }
	if got := first(); got != "guest-a" {
		t.Error(got)
	}
	s.press('a', nil)
	s.press('r', nil)
	if got := first(); !strings.HasPrefix(got, "数据库") {
		t.Error(got)
	}
	renewed := false
	s.press(' ', func() { renewed = true })
	if !renewed || s.press('q', nil) || s.press(3, nil) || !s.press('x', nil) {
		t.Error("keys")
	}
}

func TestTopNeedsATerminal(t *testing.T) {
	status, _, errs := run(t, "none", strings.NewReader(""), "top")
	if status != 1 || !strings.Contains(errs, "hint: 'cleave stats'") {
		t.Error(status, errs)
	}
}

func TestStatsIsGolden(t *testing.T) {
	f := newFake(t)
	_, f.stats = samples()
	f.stats[0].CPUNanos, f.stats[1].CPUNanos = 61e9, 1234567890
	_, out, errs := f.cleave("", "stats")
	golden(t, "stats.table", out+errs)
	_, out, _ = f.cleave("", "stats", "-o", "csv", "--columns", "name,cpu-time,memory,limit,cpu-stall")
	golden(t, "stats.csv", out)
}

func TestDoctorIsGolden(t *testing.T) {
	var b bytes.Buffer
	a := newApp(nil, &b, &b)
	err := a.printFindings([]api.Finding{
		{Area: "container", Name: "user namespaces", State: "ok", Detail: "65536 ids for each of 1000 guests"},
		{Area: "container", Name: "cgroups", State: "limited", Detail: "version 1: no pressure figures and no soft limits for the sum of all guests", Remedy: "boot with systemd.unified_cgroup_hierarchy=1"},
		{Area: "vm", Name: "KVM", State: "missing", Detail: "/dev/kvm: no such file\x1b[2J", Remedy: "turn virtualization on in the firmware"},
		{Area: "vm", Name: "other", State: "odd"},
	})
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "doctor", b.String())
}

func TestBriefStaysBrief(t *testing.T) {
	for f, want := range map[float64]string{0: "0", 0.5: "0", 1: "1", 999: "999", 1000: "1.0K", 10240: "10K", 1 << 20: "1.0M", 1023 << 20: "1.0G", 5e12: "4.5T", 9e18: "lots"} {
		if got := brief(f); got != want || len(got) > 5 {
			t.Errorf("%v: %s, want %s", f, got, want)
		}
	}
}

// The command starts in a few milliseconds because it links little.
func TestTheCommandStaysLight(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "github.com/cleave-project/cleave/cmd/cleave").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, dep := range strings.Fields(string(out)) {
		ours, isOurs := strings.CutPrefix(dep, "github.com/cleave-project/cleave/")
		first, _, _ := strings.Cut(ours, "/")
		if isOurs && !slices.Contains([]string{"api", "cli", "client", "cmd", "verify"}, first) && ours != "image/credentials" && ours != "image/reference" {
			t.Errorf("cleave links %s", dep)
		}
		for _, heavy := range []string{"huma", "etcd", "grpc", "prometheus", "go-md2man", "containerregistry", "netlink"} {
			if strings.Contains(dep, heavy) {
				t.Errorf("cleave links %s", dep)
			}
		}
	}
}
