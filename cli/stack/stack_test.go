package stack

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cleave-project/cleave/api"
	"github.com/google/go-cmp/cmp"
)

const shop = `# comment
version: 1
name: shop
x-base: &base
  restart: always
  env: {TZ: UTC, DEBUG: off}
networks:
  back: {ipv4: 10.9.0.0/24, nat: false}
volumes:
  data:
    size: 10GiB
  cache:
instances:
  web:
    <<: *base
    image: shop/web:7
    depends-on: [db]
    publish: ["8080:80", 127.0.0.1:8443:443]
    command: [httpd, -f, "-h /etc"]
    memory: 256MiB
    disk.read: 10MiB/s
    cpus: 0.5
    networks:
      - default
      - back:ip=10.9.0.5,name=back0
  db:
    <<: *base
    image: postgres:16
    env: {POSTGRES_DB: shop}
    volumes: [data:/var/lib/postgresql/data, ./init:/init:ro]
    labels: {tier: back}
    health: {command: pg_isready, interval: 5s, retries: 2}
    stop:
      timeout: 1m
  job:
    image: base
    command: sh -c 'echo done'
    power: stopped
    networks: none
`

func parse(t *testing.T, text string) *Stack {
	t.Helper()
	s, err := Parse("/stacks/shop.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestParseReadsAllForms(t *testing.T) {
	s := parse(t, shop)
	no, minute := false, 60
	mine := func(more ...string) map[string]string {
		m := map[string]string{Label: "shop"}
		for i := 0; i < len(more); i += 2 {
			m[more[i]] = more[i+1]
		}
		return m
	}
	want := &Stack{
		Name:     "shop",
		Networks: []api.Network{{Meta: api.Meta{Name: "back", Labels: mine()}, Spec: api.NetworkSpec{IPv4: "10.9.0.0/24", NAT: &no}}},
		Volumes:  []api.Volume{{Meta: api.Meta{Name: "data", Labels: mine()}, Spec: api.VolumeSpec{Size: 10 * api.GiB}}, {Meta: api.Meta{Name: "cache", Labels: mine()}}},
		Instances: []api.Instance{
			{Meta: api.Meta{Name: "web", Labels: mine()}, Spec: api.InstanceSpec{
				Image: "shop/web:7", Restart: "always", Env: map[string]string{"TZ": "UTC", "DEBUG": "off"}, Command: []string{"httpd", "-f", "-h /etc"},
				Publish:   []api.Publish{{HostPort: 8080, GuestPort: 80}, {HostIP: "127.0.0.1", HostPort: 8443, GuestPort: 443}},
				Resources: api.Resources{CPUs: 0.5, Memory: 256 * api.MiB, DiskRead: 10 * api.MiB},
				NICs:      []api.NIC{{Network: "default"}, {Network: "back", IPv4: "10.9.0.5", Name: "back0"}},
			}},
			{Meta: api.Meta{Name: "db", Labels: mine("tier", "back")}, Spec: api.InstanceSpec{
				Image: "postgres:16", Restart: "always", Env: map[string]string{"POSTGRES_DB": "shop"}, StopSeconds: &minute,
				Mounts: []api.Mount{{Volume: "data", Target: "/var/lib/postgresql/data"}, {HostPath: "/stacks/init", Target: "/init", ReadOnly: true}},
				Health: &api.HealthCheck{Command: []string{"sh", "-c", "pg_isready"}, IntervalSeconds: 5, Retries: 2},
			}},
			{Meta: api.Meta{Name: "job", Labels: mine()}, Spec: api.InstanceSpec{Image: "base", Power: api.PowerStopped, Command: []string{"sh", "-c", "echo done"}, NICs: []api.NIC{}}},
		},
		Depends: map[string][]string{"web": {"db"}},
	}
	if diff := cmp.Diff(want, s); diff != "" {
		t.Error(diff)
	}
	levels, err := s.Levels()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, l := range levels {
		for _, in := range l {
			names = append(names, in.Name)
		}
		names = append(names, "|")
	}
	if diff := cmp.Diff([]string{"db", "job", "|", "web", "|"}, names); diff != "" {
		t.Error(diff)
	}
}

func TestParseNamesTheLineOfAMistake(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"empty", "", "s.yaml is empty"},
		{"no YAML", "a: [", "s.yaml: yaml:"},
		{"a list", "- a", "s.yaml:1: the file is not a mapping"},
		{"no name", "instances: {}", "s.yaml:1: the stack has no name"},
		{"bad name", "name: A B", `s.yaml:1: "A B" is not a valid name`},
		{"version", "version: 2\nname: a", `s.yaml:1: version "2" is not known`},
		{"two documents", "name: a\n---\nname: b", "more than one document"},
		{"unknown top key", "name: a\ninstanses: {}", `s.yaml:2: there is no key "instanses"; did you mean instances?`},
		{"unknown key", "name: a\ninstances:\n  web:\n    image: b\n    memmory: 1", `s.yaml:5: there is no setting "memmory"; did you mean memory?`},
		{"unknown network key", "name: a\nnetworks:\n  n: {ip: x}", `s.yaml:3: there is no setting "ip"`},
		{"unknown nested key", "name: a\ninstances:\n  web:\n    image: b\n    health:\n      comand: x", `s.yaml:6: there is no setting "health.comand"; did you mean health.command?`},
		{"given twice", "name: a\ninstances:\n  web:\n    image: b\n    image: c", `s.yaml:5: "image" is given twice`},
		{"instance twice", "name: a\ninstances:\n  web: {image: b}\n  web: {image: b}", `s.yaml:4: "web" is given twice`},
		{"bad size", "name: a\ninstances:\n  web:\n    image: b\n    memory: lots", `s.yaml:5: memory: "lots" is not a size`},
		{"bad element", "name: a\ninstances:\n  web:\n    image: b\n    publish:\n      - 80:80\n      - nope", `s.yaml:7: publish: "nope" does not name ports`},
		{"no value", "name: a\ninstances:\n  web:\n    image: b\n    memory:", "s.yaml:5: memory has no value"},
		{"no value of a variable", "name: a\ninstances:\n  web:\n    image: b\n    env:\n      A:", "s.yaml:6: A has no value"},
		{"a mapping for a value", "name: a\ninstances:\n  web:\n    image: {b: c}", "s.yaml:4: image takes one value"},
		{"no image", "name: a\ninstances:\n  web: {cpus: 1}", `s.yaml:3: instance "web" has no image`},
		{"bad instance name", "name: a\ninstances:\n  Web: {image: b}", `s.yaml:3: "Web" is not a valid name`},
		{"dependency", "name: a\ninstances:\n  web: {image: b, depends-on: [db]}", `depends on "db", which is not in the file`},
		{"circle", "name: a\ninstances:\n  x: {image: b, depends-on: [y]}\n  y: {image: b, depends-on: [x]}", "in a circle"},
		{"invalid together", "name: a\ninstances:\n  web: {image: b, swap: 1GiB}", `instance "web": a swap limit needs a memory limit`},
		{"alias loop", "name: a\ninstances: &x\n  web: *x", "s.yaml:"},
		{"merge of a word", "name: a\ninstances:\n  web:\n    <<: word\n    image: b", "not a mapping"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse("s.yaml", []byte(tt.text))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// live is what a daemon would hold after s was applied.
func live(t *testing.T, s *Stack) Live {
	t.Helper()
	b, err := json.Marshal(Live{s.Networks, s.Volumes, s.Instances})
	if err != nil {
		t.Fatal(err)
	}
	var l Live
	if err := json.Unmarshal(b, &l); err != nil {
		t.Fatal(err)
	}
	for i := range l.Instances {
		in := &l.Instances[i]
		if in.Spec.Power == "" {
			in.Spec.Power = api.PowerRunning
		}
		in.Spec.Kind = api.KindContainer // as if the daemon filled in defaults
		in.Revision = 7
	}
	for i := range l.Networks {
		l.Networks[i].Spec.IPv6 = "fd00::/64"
	}
	for i := range l.Volumes {
		l.Volumes[i].Spec.Pool = "default"
	}
	return l
}

func plan(t *testing.T, s *Stack, l Live) *Plan {
	t.Helper()
	p, err := s.Compare(l)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestApplyingTwiceChangesNothing(t *testing.T) {
	s := parse(t, shop)
	if steps := plan(t, s, live(t, s)).Steps(true); len(steps) != 0 {
		t.Errorf("%+v", steps)
	}
}

func TestCompareFindsWhatIsToBeDone(t *testing.T) {
	s := parse(t, shop)
	for _, tt := range []struct {
		name   string
		change func(*Live)
		action Action
		patch  string
		power  api.Power
		fixed  []string
	}{
		{"memory by hand", func(l *Live) { l.Instances[0].Spec.Resources.Memory = 5 }, Update, `{"spec":{"resources":{"memory":268435456}}}`, "", nil},
		{"a setting that the file doesn't mention", func(l *Live) { l.Instances[0].Spec.Resources.PIDs = 5 }, Update, `{"spec":{"resources":{"pids":null}}}`, "", nil},
		{"a variable more", func(l *Live) { l.Instances[0].Spec.Env["X"] = "1" }, Update, `{"spec":{"env":{"X":null}}}`, "", nil},
		{"a label less", func(l *Live) { delete(l.Instances[1].Labels, "tier") }, Update, `{"labels":{"tier":"back"}}`, "", nil},
		{"stopped by hand", func(l *Live) { l.Instances[0].Spec.Power = api.PowerStopped }, Power, "", api.PowerRunning, nil},
		{"running against the file", func(l *Live) { l.Instances[2].Spec.Power = api.PowerRunning }, Power, "", api.PowerStopped, nil},
		{"another image", func(l *Live) { l.Instances[0].Spec.Image = "shop/web:6" }, Replace, "", "", []string{"image"}},
		{"another wall", func(l *Live) { l.Instances[0].Spec.Kind, l.Instances[0].Status.Phase = api.KindVM, api.PhaseRunning }, Replace, "", "", []string{"kind"}},
		{"another wall of a stopped one", func(l *Live) { l.Instances[0].Spec.Kind, l.Instances[0].Status.Phase = api.KindVM, api.PhaseStopped }, Update, `{"spec":{"kind":null}}`, "", nil},
		{"another network", func(l *Live) { l.Instances[2].Spec.NICs = nil }, Update, `{"spec":{"nics":[]}}`, "", nil},
		{"another network of one that runs", func(l *Live) { l.Instances[0].Spec.NICs = nil }, Update, "", "", nil},
		{"another pool and architecture", func(l *Live) {
			l.Instances[0].Spec.Root.Pool, l.Instances[0].Spec.Machine.Arch = "fast", "riscv64"
		}, Replace, "", "", []string{"pool", "arch"}},
		{"a missing instance", func(l *Live) { l.Instances = l.Instances[1:] }, Create, "", "", nil},
		{"a smaller volume", func(l *Live) { l.Volumes[0].Spec.Size = 1 }, Update, `{"spec":{"size":10737418240}}`, "", nil},
		{"a missing network", func(l *Live) { l.Networks = nil }, Create, "", "", nil},
		{"gone from the file", func(l *Live) {
			l.Instances = append(l.Instances, api.Instance{Meta: api.Meta{Name: "old", Labels: map[string]string{Label: "shop"}}})
		}, Delete, "", "", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := live(t, s)
			tt.change(&l)
			steps := plan(t, s, l).Steps(true)
			if len(steps) != 1 {
				t.Fatalf("%d steps: %+v", len(steps), steps)
			}
			got := steps[0]
			if got.Action != tt.action || got.Power != tt.power {
				t.Errorf("got %s, power %q", got.Action, got.Power)
			}
			if b, _ := json.Marshal(got.Patch); tt.patch != "" && string(b) != tt.patch {
				t.Errorf("patch %s, want %s", b, tt.patch)
			}
			if diff := cmp.Diff(tt.fixed, got.Fixed); diff != "" {
				t.Error(diff)
			}
			if len(got.Diff) == 0 {
				t.Error("no diff")
			}
		})
	}
}

func TestWorkDoneIsNotBegunAgain(t *testing.T) {
	s := parse(t, "name: a\ninstances:\n  job: {image: base}\n  service: {image: base, restart: always}")
	l := live(t, s)
	for i := range l.Instances {
		l.Instances[i].Spec.Power = api.PowerStopped
		l.Instances[i].Status = api.InstanceStatus{Phase: api.PhaseStopped, Exit: &api.ExitStatus{}}
	}
	steps := plan(t, s, l).Steps(false)
	if len(steps) != 1 || steps[0].Name != "service" {
		t.Errorf("%+v", steps)
	}
}

func TestCompareLeavesStrangersAlone(t *testing.T) {
	s := parse(t, shop)
	for _, change := range []func(*Live){
		func(l *Live) { l.Instances[0].Labels = nil },
		func(l *Live) { l.Networks[0].Labels = map[string]string{Label: "other"} },
		func(l *Live) { l.Volumes[0].Labels = nil },
	} {
		l := live(t, s)
		change(&l)
		if _, err := s.Compare(l); !api.IsCode(err, api.CodeExists) {
			t.Errorf("%v", err)
		}
	}
	l := live(t, s)
	l.Instances = append(l.Instances, api.Instance{Meta: api.Meta{Name: "mine"}}, api.Instance{Meta: api.Meta{Name: "his", Labels: map[string]string{Label: "other"}}})
	if steps := plan(t, s, l).Steps(true); len(steps) != 0 {
		t.Errorf("%+v", steps)
	}
}

func TestDiffIsGolden(t *testing.T) {
	s := parse(t, shop)
	l := live(t, s)
	l.Instances[0].Spec.Resources.Memory = 512 * api.MiB
	l.Instances[0].Spec.Env["NEW"] = "x"
	l.Instances[1].Spec.Power = api.PowerStopped
	l.Instances = l.Instances[:2]
	l.Networks[0].Spec.IPv4 = "10.8.0.0/24"
	var b strings.Builder
	for _, step := range plan(t, s, l).Steps(true) {
		for _, line := range step.Diff {
			if line.Op != '@' {
				b.WriteByte(line.Op)
			}
			b.WriteString(line.Text + "\n")
		}
	}
	golden := filepath.Join("testdata", "diff.golden")
	if os.Getenv("UPDATE") != "" {
		os.MkdirAll("testdata", 0o755)
		os.WriteFile(golden, []byte(b.String()), 0o644)
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Error(diff)
	}
}

func TestUnifiedAsDiffWouldPrint(t *testing.T) {
	lines := func(from, to int) string {
		var b strings.Builder
		for i := from; i <= to; i++ {
			b.WriteString("line " + string(rune('a'+i)) + "\n")
		}
		return b.String()
	}
	old := lines(0, 19)
	now := strings.Replace(strings.Replace(old, "line b\n", "LINE B\n", 1), "line r\n", "", 1)
	var got []string
	for _, l := range Unified("old", "new", old, now) {
		got = append(got, string(l.Op)+l.Text)
	}
	want := []string{
		"@--- old", "@+++ new",
		"@@@ -1,5 +1,5 @@", " line a", "-line b", "+LINE B", " line c", " line d", " line e",
		"@@@ -15,6 +15,5 @@", " line o", " line p", " line q", "-line r", " line s", " line t",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if Unified("a", "b", "same\n", "same\n") != nil {
		t.Error("equal texts differ")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(shop))
	f.Add([]byte("name: a\ninstances: &x\n  web: *x"))
	f.Add([]byte("name: a\nx-a: &a [1]\ninstances: {w: {<<: [{image: b}], command: *a}}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Parse("s.yaml", b)
		if err != nil {
			if !api.IsCode(err, api.CodeInvalid) {
				t.Fatal(err)
			}
			return
		}
		if _, err := s.Compare(Live{}); err != nil {
			t.Fatal(err)
		}
	})
}
