package settings

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
)

func TestAssignBuildsMergePatch(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"cpus=0.5", `{"spec":{"resources":{"cpus":0.5}}}`},
		{"memory=512MiB", `{"spec":{"resources":{"memory":536870912}}}`},
		{"memory=0", `{"spec":{"resources":{"memory":0}}}`},
		{"memory=", `{"spec":{"resources":{"memory":null}}}`},
		{"memory-", `{"spec":{"resources":{"memory":null}}}`},
		{"memory.soft=1k", `{"spec":{"resources":{"memorySoft":1024}}}`},
		{"root.size=1GiB", `{"spec":{"root":{"size":1073741824}}}`},
		{"disk.read=10MiB/s", `{"spec":{"resources":{"diskRead":10485760}}}`},
		{"net.in=1MBps", `{"spec":{"resources":{"netIn":1000000}}}`},
		{"env.PATH=/a=b:/c", `{"spec":{"env":{"PATH":"/a=b:/c"}}}`},
		{"env.EMPTY=", `{"spec":{"env":{"EMPTY":""}}}`},
		{"env.GONE-", `{"spec":{"env":{"GONE":null}}}`},
		{"label.app.kubernetes.io/name=x", `{"labels":{"app.kubernetes.io/name":"x"}}`},
		{"labels=a=1,b=2", `{"labels":{"a":"1","b":"2"}}`},
		{"autostart=yes", `{"spec":{"autostart":true}}`},
		{"init=off", `{"spec":{"init":false}}`},
		{"stop.timeout=1m30s", `{"spec":{"stopSeconds":90}}`},
		{"stop.timeout=1500ms", `{"spec":{"stopSeconds":2}}`},
		{"restart=always", `{"spec":{"restart":"always"}}`},
		{"publish=8080:80,127.0.0.1:53:5353/udp", `{"spec":{"publish":[{"guestPort":80,"hostPort":8080},{"guestPort":5353,"hostIP":"127.0.0.1","hostPort":53,"protocol":"udp"}]}}`},
		{"publish=[::1]:8000-8001:80-81", `{"spec":{"publish":[{"guestPort":80,"hostIP":"::1","hostPort":8000},{"guestPort":81,"hostIP":"::1","hostPort":8001}]}}`},
		{"volumes=data:/var/lib/x/:ro,/srv:/srv", `{"spec":{"mounts":[{"readOnly":true,"target":"/var/lib/x","volume":"data"},{"hostPath":"/srv","target":"/srv"}]}}`},
		{"network=none", `{"spec":{"nics":[]}}`},
		{"network=default,lan:ip=10.0.0.5;ip6=fd00::5;name=lan0", `{"spec":{"nics":[{"network":"default"},{"ipv4":"10.0.0.5","ipv6":"fd00::5","name":"lan0","network":"lan"}]}}`},
		{"network=lan:ip=fd00::5", `{"spec":{"nics":[{"ipv6":"fd00::5","network":"lan"}]}}`},
		{"command=sh -c 'echo \"a b\"' c\\ d \"\"", `{"spec":{"command":["sh","-c","echo \"a b\"","c d",""]}}`},
		{`entrypoint=["a b", "c"]`, `{"spec":{"entrypoint":["a b","c"]}}`},
		{"health.command=wget -q localhost", `{"spec":{"health":{"command":["sh","-c","wget -q localhost"]}}}`},
		{"cap.add=net_raw,CAP_SYS_PTRACE", `{"spec":{"security":{"addCapabilities":["NET_RAW","SYS_PTRACE"]}}}`},
		{"ulimit.nofile=1024:4096", `{"spec":{"ulimits":{"nofile":{"hard":4096,"soft":1024}}}}`},
		{"ulimit.core=unlimited", `{"spec":{"ulimits":{"core":{"hard":-1,"soft":-1}}}}`},
		{"sysctl.net.ipv4.ip_forward=1", `{"spec":{"sysctls":{"net.ipv4.ip_forward":"1"}}}`},
	} {
		t.Run(tt.text, func(t *testing.T) {
			p := Patch{Table: Instance}
			if err := p.Assign(tt.text); err != nil {
				t.Fatal(err)
			}
			got, err := json.Marshal(&p)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, string(got)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestAssignRefusesNonsenseWithAWayOut(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"memory", "says no value"},
		{"memory=lots", "memory: \"lots\" is not a size"},
		{"memory=-1", "is not a size"},
		{"cpus=NaN", "is not a number"},
		{"cpus=-1", "is not a number"},
		{"pids=1.5", "whole number"},
		{"autostart=perhaps", "neither true nor false"},
		{"restart=often", "choose from never, on-failure, always"},
		{"kind=jail", "choose from container, pvm, vm"},
		{"memmory=1", "did you mean memory?"},
		{"soft=1", "did you mean memory.soft?"},
		{"zzzzzz=1", "there is no setting \"zzzzzz\""},
		{"publish=80", "does not name ports"},
		{"publish=0:80", "does not name ports"},
		{"publish=8080:65536", "does not name ports"},
		{"publish=8000-8002:80-81", "differ in length"},
		{"publish=1-2000:1-2000", "more than 1024"},
		{"publish=bad:80:80", "is not an address"},
		{"publish=80:80/sctp", "tcp or udp"},
		{"volumes=data", "does not name a volume and a target"},
		{"volumes=data:relative", "not an absolute path"},
		{"volumes=data:/x:rx", "not an option"},
		{"network=lan:speed=9", "not an option"},
		{"network=lan:ip=9", "not an address"},
		{"command=echo 'open", "inside a quotation"},
		{"entrypoint=[1]", "JSON array"},
		{"cap.add=NET RAW", "name of a capability"},
		{"ulimit.nofile=many", "is not a limit"},
		{"env.=x", "no setting \"env.\""},
		{"labels=x", "has no value"},
		{"stop.timeout=soon", "not a time span"},
		{"stop.timeout=-1s", "not a time span"},
	} {
		t.Run(tt.text, func(t *testing.T) {
			p := Patch{Table: Instance}
			err := p.Assign(tt.text)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want it to contain %q", err, tt.want)
			}
			if !api.IsCode(err, api.CodeInvalid) {
				t.Errorf("code of %v is not invalid", err)
			}
		})
	}
}

// sample has a valid text for every kind of value.
func sample(s *Setting) string {
	if len(s.Choices) > 0 {
		return s.Choices[0]
	}
	switch s.Value {
	case "":
		return "true"
	case "NETWORK[:ip=ADDR]":
		return "default"
	case "[IP:]HOST:GUEST[/udp]":
		return "1:2"
	case "VOLUME|/DIR:TARGET[:ro]":
		return "v:/t"
	case "NAME=SOFT[:HARD]":
		return "nofile=5"
	case "NAME=VALUE":
		return "a=b"
	case "FILE|KEY":
		return "ssh-ed25519 AAAA me"
	}
	return "5"
}

func TestEveryPathIsAFieldOfTheAPI(t *testing.T) {
	for _, s := range Instance {
		p := Patch{Table: Instance}
		if s.Key == "cap.add" || s.Key == "cap.drop" {
			if err := p.Add(s, "NET_RAW"); err != nil {
				t.Fatal(err)
			}
		} else if err := p.Add(s, sample(s)); err != nil {
			t.Fatalf("%s: %v", s.Key, err)
		}
		in := api.Instance{}
		if err := p.Into(&in); err != nil {
			t.Errorf("%s: %v", s.Key, err)
		}
		if cmp.Equal(in, api.Instance{}) {
			t.Errorf("%s changes nothing in the instance", s.Key)
		}
	}
}

func TestKeysFlagsAndAliasesAreUnique(t *testing.T) {
	seen := map[string]string{}
	for _, s := range Instance {
		for _, k := range append([]string{s.Key, "--" + s.Flag + s.Key[:0]}, s.Aliases...) {
			if k == "--" {
				continue
			}
			if other, ok := seen[k]; ok {
				t.Errorf("%q means both %s and %s", k, other, s.Key)
			}
			seen[k] = s.Key
		}
	}
}

func TestFlagsFillAnInstance(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "env")
	if err := os.WriteFile(file, []byte("# comment\nA=1\n\nexport B=2 3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("FROM_HERE", "yes")
	p := Patch{Dir: "/base"}
	fs := pflag.NewFlagSet("launch", pflag.ContinueOnError)
	InstanceFlags(fs, &p)
	err := fs.Parse([]string{
		"--cpus", "1.5", "-m", "1GiB", "-e", "FROM_HERE", "-e", "C=a,b", "--env-file", file,
		"-p", "80:80", "-p", "443:443", "--autostart", "--init=false", "-v", "./x:/x", "--no-health", "--network", "none",
	})
	if err != nil {
		t.Fatal(err)
	}
	var got api.Instance
	if err := p.Into(&got); err != nil {
		t.Fatal(err)
	}
	no := false
	want := api.Instance{Spec: api.InstanceSpec{
		Env:       map[string]string{"A": "1", "B": "2 3", "C": "a,b", "FROM_HERE": "yes"},
		Init:      &no,
		Autostart: true,
		Resources: api.Resources{CPUs: 1.5, Memory: api.GiB},
		Mounts:    []api.Mount{{HostPath: "/base/x", Target: "/x"}},
		NICs:      []api.NIC{},
		Publish:   []api.Publish{{HostPort: 80, GuestPort: 80}, {HostPort: 443, GuestPort: 443}},
		Health:    &api.HealthCheck{Command: []string{}},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestParseDurationKnowsDaysAndWeeks(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"90": 90 * time.Second, "0": 0, "1m30s": 90 * time.Second, "7d": 168 * time.Hour, "2w": 336 * time.Hour, "1.5d": 36 * time.Hour,
	} {
		if got, err := ParseDuration(text); err != nil || got != want {
			t.Errorf("%s: got %v, %v; want %v", text, got, err, want)
		}
	}
}

func FuzzAssign(f *testing.F) {
	for _, s := range Instance {
		f.Add(s.Key + "=" + sample(s))
	}
	f.Add("env.X-")
	f.Add("publish=[::1]:1-9:1-9/udp")
	f.Fuzz(func(t *testing.T, text string) {
		p := Patch{Table: Instance}
		if p.Assign(text) != nil {
			return
		}
		b, err := json.Marshal(&p)
		if err != nil {
			t.Fatal(err)
		}
		var in api.Instance
		if err := json.Unmarshal(b, &in); err != nil {
			t.Fatalf("%q gives %s: %v", text, b, err)
		}
	})
}
