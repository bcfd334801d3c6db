package cli

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/google/go-cmp/cmp"
)

func TestMain(m *testing.M) {
	time.Local = time.UTC // times for people are local ones
	os.Exit(m.Run())
}

// golden compares with a file in testdata; UPDATE=1 writes it.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if os.Getenv("UPDATE") != "" {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Error(diff)
	}
}

func guests() []api.Instance {
	started, stopped := epoch.Add(-time.Hour), epoch.Add(-5*time.Minute)
	no, half := false, 30
	return []api.Instance{
		{
			Meta: api.Meta{ID: "abcdefghij", Project: "default", Name: "web", Created: epoch.Add(-26 * time.Hour), Labels: map[string]string{"app": "shop", "tier": "front"}},
			Spec: api.InstanceSpec{
				Image: "docker.io/library/nginx:latest", Power: api.PowerRunning, Publish: []api.Publish{{HostPort: 8080, GuestPort: 80}, {HostIP: "::1", HostPort: 53, GuestPort: 53, Protocol: "udp"}},
				Command: []string{"httpd", "-h", "/my files"}, Env: map[string]string{"A": "1", "B": "two"}, Restart: api.RestartAlways, Autostart: true, StopSeconds: &half, Init: &no,
				Resources: api.Resources{CPUs: 1.5, Memory: 512 * api.MiB, NetOut: 10 * api.MiB}, Root: api.RootDisk{Size: 2 * api.GiB},
				Mounts:   []api.Mount{{Volume: "data", Target: "/data"}, {HostPath: "/srv", Target: "/srv", ReadOnly: true}},
				Security: api.Security{AddCapabilities: []string{"NET_RAW"}}, Ulimits: map[string]api.Ulimit{"nofile": {Soft: 1024, Hard: 4096}},
				Health: &api.HealthCheck{Command: []string{"sh", "-c", "true"}, IntervalSeconds: 5},
			},
			Status: api.InstanceStatus{
				Phase: api.PhaseRunning, Host: "box", Engine: "container", PID: 4711, UIDBase: 655360, Started: &started, Health: "unhealthy",
				NICs: []api.Port{{Network: "default", Name: "eth0", MAC: "02:00:00:00:00:01", IPv4: "10.83.0.2/24", IPv6: "fd00::2/64"}}, Loosened: []string{"capability NET_RAW was added"},
			},
		},
		{
			Meta:   api.Meta{ID: "b", Project: "default", Name: "a-rather-long-name-of-a-batch-job-of-the-month-of-march", Created: epoch.Add(-10 * time.Minute)},
			Spec:   api.InstanceSpec{Image: "registry.example.org/a/rather/deep/path/to/image:2026-03", Kind: api.KindVM},
			Status: api.InstanceStatus{Phase: api.PhaseStopped, Stopped: &stopped, Exit: &api.ExitStatus{Code: 137, OOMKilled: true}},
		},
		{
			Meta: api.Meta{ID: "c", Project: "default", Name: "bad", Created: epoch}, Spec: api.InstanceSpec{Image: "base"},
			Status: api.InstanceStatus{Phase: api.PhaseFailed, Error: &api.Error{Code: api.CodeNotFound, Message: "starting /bin/nope: no such file", Hint: "check the command\x1b[2J"}},
		},
	}
}

func TestListIsGolden(t *testing.T) {
	f := newFake(t)
	f.instances = guests()
	for name, args := range map[string][]string{
		"list.table":   {"list"},
		"list.csv":     {"ls", "-o", "csv"},
		"list.name":    {"instance", "list", "-o", "name"},
		"list.json":    {"list", "-o", "json"},
		"list.yaml":    {"list", "-o", "yaml"},
		"list.columns": {"list", "--columns", "name,ports,health,memory,labels"},
		"show.table":   {"show", "web"},
		"show.failed":  {"info", "bad"},
	} {
		t.Run(name, func(t *testing.T) {
			if strings.HasPrefix(name, "show") {
				f.instances = guests()
			}
			status, out, errs := f.cleave("", args...)
			if status != 0 || errs != "" {
				t.Fatal(status, errs)
			}
			golden(t, name, out)
		})
	}
}

func TestListAsksTheDaemonToFilter(t *testing.T) {
	f := newFake(t)
	f.cleave("", "list", "we", "-l", "app=shop", "--state", "running")
	if diff := cmp.Diff([]string{"GET /instances?label=app%3Dshop&name=we&phase=running"}, f.took()); diff != "" {
		t.Error(diff)
	}
}

func TestLaunchSendsWhatWasSaid(t *testing.T) {
	f := newFake(t)
	status, out, errs := f.cleave("", "launch", "base", "web", "--publish", "8080:80", "--", "httpd", "-f", "-p", "80", "-h", "/etc")
	if status != 0 || out != "web\n" || errs != "" {
		t.Error(status, out, errs)
	}
	want := []string{`POST /instances?start=true {"name":"web","spec":{"image":"base","command":["httpd","-f","-p","80","-h","/etc"],"publish":[{"hostPort":8080,"guestPort":80}]}}`}
	if diff := cmp.Diff(want, f.took()); diff != "" {
		t.Error(diff)
	}
}

func TestWaitingEndsWhenTheCheckHasFailed(t *testing.T) {
	f := newFake(t)
	f.instances = []api.Instance{{Meta: api.Meta{Name: "web"}, Status: api.InstanceStatus{Phase: api.PhaseRunning, Health: "unhealthy"}}}
	status, _, errs := f.cleave("", "start", "web", "--wait")
	if status != 1 || !strings.Contains(errs, "web runs but is unhealthy") || !strings.Contains(errs, "cleave logs web") {
		t.Error(status, errs)
	}
}

func TestCreateMakesUpANameUntilOneIsFree(t *testing.T) {
	f := newFake(t)
	for range 20 {
		status, out, errs := f.cleave("", "create", "base")
		if status != 0 || api.ValidateName("instance", strings.TrimSpace(out)) != nil {
			t.Fatal(status, out, errs)
		}
	}
	f.took()
	status, _, errs := f.cleave("", "create", "base", "--name", f.instances[0].Name)
	if status != 1 || !strings.Contains(errs, "already exists") || !strings.Contains(errs, "\nhint: choose another name\n") {
		t.Error(status, errs)
	}
	if n := len(f.took()); n != 1 {
		t.Errorf("%d requests for a name that the user chose", n)
	}
}

func TestEveryMadeUpNameIsValid(t *testing.T) {
	for _, a := range adjectives {
		for _, n := range nouns {
			if err := api.ValidateName("instance", a+"-"+n); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestUsageErrorsAreShortAndExitWith2(t *testing.T) {
	f := newFake(t)
	for _, tt := range []struct{ args, want, see string }{
		{"lunch base", "there is no command 'cleave lunch'; did you mean launch?", "cleave"},
		{"image pul", "there is no command 'cleave image pul'; did you mean pull?", "cleave image"},
		{"launch", "IMAGE is missing", "cleave launch"},
		{"launch base web httpd", `"httpd" is too much: put -- before the command`, "cleave launch"},
		{"launch base web --name other", "two names are given", "cleave launch"},
		{"launch base --memroy 1", "unknown flag --memroy; did you mean --memory", "cleave launch"},
		{"launch base --memory lots", `"lots" is not a size`, "cleave launch"},
		{"launch base --restart often", "choose from never, on-failure, always", "cleave launch"},
		{"launch base web httpd -f", "put -- before a command", "cleave launch"},
		{"exec web", "COMMAND is missing; 'cleave shell web'", "cleave exec"},
		{"exec -- sh", "NAME is missing", "cleave exec"},
		{"exec web -x -- sh", "unknown shorthand flag: 'x'", "cleave exec"},
		{"show", "NAME is missing: cleave show needs NAME", "cleave show"},
		{"show a b", `"b" is too much`, "cleave show"},
		{"list -o xml", `there is no format "xml"`, "cleave list"},
		{"list --columns colour", `there is no column "colour"`, "cleave list"},
		{"rename a", "NEWNAME is missing", "cleave rename"},
		{"set web", "KEY=VALUE is missing", "cleave set"},
		{"set web memmory=1", "did you mean memory?", "cleave set"},
		{"set web nics=back", "it is the API's word for networks", "cleave set"},
		{"set web mounts=data:/data", "it is the API's word for volumes", "cleave set"},
		{"set web bootSeconds=9", "it is the API's word for boot-timeout", "cleave set"},
		{"set web power=stopped", "start, stop, pause and resume", "cleave set"},
		{"delete", "NAME is missing", "cleave delete"},
		{"delete a -f x", "not both", "cleave delete"},
		{"cp a b", "neither side is in an instance", "cleave cp"},
		{"apply", "-f FILE is missing", "cleave apply"},
		{"logs --since yesterday web", "write a time span", "cleave logs"},
		{"stop web --save --force", "give one of them", "cleave stop"},
		{"copy web web2 --kind foo", "choose from container, pvm, vm", "cleave copy"},
		{"stop --timeout soon web", "not a time span", "cleave stop"},
		{"image pull --user me x", "needs --password-stdin", "cleave image pull"},
		{"completion tcsh", "no completions for", "cleave completion"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			status, out, errs := f.cleave("", strings.Fields(tt.args)...)
			lines := strings.Split(strings.TrimSpace(errs), "\n")
			if status != 2 || out != "" || !strings.Contains(errs, tt.want) || !strings.HasPrefix(errs, "cleave: ") {
				t.Errorf("%d %q %q", status, out, errs)
			}
			if last := lines[len(lines)-1]; last != "see '"+tt.see+" --help'" || len(lines) > 3 {
				t.Errorf("%q", lines)
			}
		})
	}
	if got := f.took(); len(got) != 0 {
		t.Errorf("the daemon was asked: %v", got)
	}
}

func TestADaemonThatDoesNotAnswerIsExplained(t *testing.T) {
	dir := t.TempDir()
	status, _, errs := run(t, filepath.Join(dir, "none.sock"), nil, "list")
	if status != 1 || !strings.Contains(errs, "the daemon does not answer at "+dir+"/none.sock: no such file or directory\nhint: start it with 'systemctl start cleaved'") {
		t.Error(status, errs)
	}
	// A socket left behind by a daemon that was killed.
	stale := filepath.Join(dir, "stale")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	status, _, errs = run(t, stale, nil, "list")
	if status != 1 || !strings.Contains(errs, "stale: connection refused\nhint: start it") {
		t.Error(status, errs)
	}
}

func TestErrorsOfTheDaemonKeepTheirHint(t *testing.T) {
	f := newFake(t)
	status, _, errs := f.cleave("", "show", "nope")
	if want := "cleave: there is no instance \"nope\"\nhint: `cleave list` shows them\n"; status != 1 || errs != want {
		t.Errorf("%d %q", status, errs)
	}
}

func TestErrorsCallSettingsAsUsersDo(t *testing.T) {
	for field, says := range map[string][2]string{
		"spec.machine.bootSeconds": {"a container has no bootSeconds: it runs", "a container has no boot-timeout: it runs"},
		"spec.resources.pids":      {"resources.pids can't be set", "pids can't be set"},
		"spec.image":               {"spec.image of \"a\" was chosen", "image of \"a\" was chosen"},
		"spec.root.pool":           {"spec.root.pool of \"a\" was chosen", "pool of \"a\" was chosen"},
		"spec.type":                {"spec.type of \"v\" was chosen", "type of \"v\" was chosen"},
		"spec.init":                {"its init has ended", "its init has ended"},
		"spec.tty":                 {"tty can't be set", "tty can't be set"},
		"spec.workDir":             {"workDir can't be set", "workdir can't be set"},
		"name":                     {"the name is taken", "the name is taken"},
		"":                         {"", ""},
	} {
		if got := inUsersWords(api.Errorf(api.CodeInvalid, "%s", says[0]).WithField(field)); got != says[1] {
			t.Errorf("%s: %q", field, got)
		}
	}
}

func TestSeveralSubjectsFailOneByOne(t *testing.T) {
	f := newFake(t)
	f.operation = func(op *api.Operation) {
		if op.Target == "b" {
			op.State, op.Error = api.OperationFailed, api.Errorf(api.CodeTimeout, "it does not stop").WithHint("use --force")
		}
	}
	status, _, errs := f.cleave("", "stop", "a", "b", "c", "--timeout", "1m30s")
	if want := "cleave: b: it does not stop\nhint: use --force\n"; status != 1 || errs != want {
		t.Errorf("%d %q", status, errs)
	}
	got := f.took()
	if len(got) != 3 || !strings.HasSuffix(got[0], `{"timeoutSeconds":90}`) {
		t.Errorf("%q", got)
	}
}

func TestSetSendsAMergePatchAndTellsWhatWaits(t *testing.T) {
	f := newFake(t)
	f.operation = func(op *api.Operation) { op.Step = "takes effect at the next start: env" }
	status, _, errs := f.cleave("", "set", "web", "cpus=1.5", "env.A=1", "env.B-", "label.tier=front")
	if status != 0 || errs != "note: takes effect at the next start: env\n" {
		t.Error(status, errs)
	}
	want := []string{`PATCH /instances/web {"labels":{"tier":"front"},"spec":{"env":{"A":"1","B":null},"resources":{"cpus":1.5}}}`, "GET /instances/web"}
	if diff := cmp.Diff(want, f.took()); diff != "" {
		t.Error(diff)
	}
}

// What waits is told with the keys that users write, and shown as what it is
// until then.
func TestWhatWaitsIsNamedByItsKeys(t *testing.T) {
	f := newFake(t)
	f.instances = guests()[:1]
	in := &f.instances[0]
	was := in.Spec
	was.Env = map[string]string{"A": "1"}
	was.Resources.Memory, was.Security.AddCapabilities, was.Mounts, was.StopSeconds = 256*api.MiB, nil, nil, nil
	in.Status.Running = &was
	f.operation = func(op *api.Operation) {
		op.Step = "takes effect at the next start: env.B none -> two, resources.memory 256MiB -> 512MiB, mounts./srv none -> /srv:ro, security.addCapabilities default -> NET_RAW"
	}
	_, _, errs := f.cleave("", "set", "web", "memory=512MiB")
	if want := "note: takes effect at the next start: env.B none -> two, memory 256MiB -> 512MiB, volumes./srv none -> /srv:ro, cap.add default -> NET_RAW\n"; errs != want {
		t.Errorf("%q", errs)
	}
	_, out, _ := f.cleave("", "show", "web")
	golden(t, "show.waiting", out)
}

func TestProgressOfSlowWorkAndItsFailure(t *testing.T) {
	f := newFake(t)
	var op *api.Operation
	f.operation = func(o *api.Operation) {
		op = o
		op.State, op.Step, op.Done, op.Total = api.OperationRunning, "downloading", 1<<20, 4<<20
	}
	f.seen = func(errs string) { // a step lasts until it was told
		f.mu.Lock()
		defer f.mu.Unlock()
		switch {
		case strings.HasSuffix(errs, "downloading  25%  1MiB/4MiB\n"):
			op.Step, op.Changes = "extracting", op.Changes+1
		case strings.HasSuffix(errs, "extracting  25%  1MiB/4MiB\n"):
			op.State, op.Error, op.Changes = api.OperationFailed, api.Errorf(api.CodeCorrupt, "layer 2 has the wrong digest"), op.Changes+1
		}
	}
	status, out, errs := f.cleave("", "launch", "debian", "web")
	want := "instance.create web: downloading  25%  1MiB/4MiB\ninstance.create web: extracting  25%  1MiB/4MiB\ncleave: layer 2 has the wrong digest\n"
	if status != 1 || out != "" {
		t.Error(status, out)
	}
	if diff := cmp.Diff(want, errs); diff != "" {
		t.Error(diff)
	}
}

func TestCompletionOffersLiveNames(t *testing.T) {
	f := newFake(t)
	f.instances = guests()
	f.images = []api.Image{{Names: []string{"docker.io/library/debian:bookworm", "base"}}}
	f.volumes = []api.Volume{{Meta: api.Meta{Name: "data"}}}
	for _, tt := range []struct {
		args []string
		want []string
	}{
		{[]string{"show", ""}, []string{"web", "a-rather-long-name-of-a-batch-job-of-the-month-of-march", "bad"}},
		{[]string{"stop", "w"}, []string{"web"}},
		{[]string{"exec", ""}, []string{"web"}},
		{[]string{"delete", "web", "b"}, []string{"bad"}},
		{[]string{"launch", "deb"}, []string{"debian:bookworm"}},
		{[]string{"volume", "show", ""}, []string{"data"}},
		{[]string{"launch", "--restart", ""}, []string{"never", "on-failure", "always"}},
		{[]string{"launch", "--volume", "d"}, []string{"data"}},
		{[]string{"set", "web", "memory.s"}, []string{"memory.soft=\tpushed back to this when the host is short of memory"}},
		{[]string{"set", "web", "restart=al"}, []string{"restart=always"}},
		{[]string{"cp", "we"}, []string{"web:"}},
		{[]string{"list", "-o", ""}, []string{"table", "json", "yaml", "csv", "name"}},
		{[]string{"completion", ""}, []string{"bash", "zsh", "fish"}},
		{[]string{"pool", "cr"}, []string{"create\tCreate a pool"}},
	} {
		_, out, _ := f.cleave("", append([]string{"__complete"}, tt.args...)...)
		lines := strings.Split(strings.TrimSpace(out), "\n")
		if diff := cmp.Diff(tt.want, lines[:len(lines)-1]); diff != "" {
			t.Errorf("%v: %s", tt.args, diff)
		}
	}
}

func TestCompletionScriptsAreMade(t *testing.T) {
	for shell, want := range map[string]string{"bash": "complete -o default", "zsh": "#compdef cleave", "fish": "complete -c cleave"} {
		status, out, _ := run(t, "none", nil, "completion", shell)
		if status != 0 || !strings.Contains(out, want) {
			t.Errorf("%s: %d", shell, status)
		}
	}
}

func TestVersionOfTheClientAsksNobody(t *testing.T) {
	if status, out, errs := run(t, "/nonexistent", nil, "version", "--client"); status != 0 || out != "cleave dev\n" || errs != "" {
		t.Error(status, out, errs)
	}
}

func TestApplyTwiceChangesNothing(t *testing.T) {
	f := newFake(t)
	file := filepath.Join(t.TempDir(), "shop.yaml")
	text := "name: shop\nvolumes:\n  data: {size: 1GiB}\nnetworks:\n  back:\ninstances:\n  web:\n    image: base\n    depends-on: [db]\n  db:\n    image: base\n    memory: 64MiB\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	status, out, errs := f.cleave("", "apply", "-f", file, "--dry-run")
	if want := "would create network back\nwould create volume data\nwould create instance db\nwould create instance web\n"; status != 0 || out != want {
		t.Error(status, out, errs)
	}
	if status, out, _ := f.cleave("", "diff", "-f", file); status != 1 || !strings.Contains(out, "+++ instance/db (file)\n@@ -0,0 +1,4 @@\n+image: base\n+labels:\n+  cleave.stack: shop\n+memory: 64MiB\n") {
		t.Error(status, out)
	}
	status, out, errs = f.cleave("", "apply", "-f", file)
	if want := "network back created\nvolume data created\ninstance db created\ninstance web created\n"; status != 0 || out != want || errs != "" {
		t.Error(status, out, errs)
	}
	f.took()
	if status, out, errs := f.cleave("", "apply", "-f", file); status != 0 || out != "" || errs != "note: nothing to change in stack \"shop\"\n" {
		t.Error(status, out, errs)
	}
	for _, r := range f.took() {
		if !strings.HasPrefix(r, "GET ") {
			t.Errorf("the second time did %s", r)
		}
	}
	if status, out, _ := f.cleave("", "diff", "-f", file); status != 0 || out != "" {
		t.Error(status, out)
	}
	status, out, errs = f.cleave(strings.Replace(text, "image: base\n    memory", "image: other\n    memory", 1), "apply", "-f", "-")
	if status != 1 || !strings.Contains(errs, "only replaced: db (image)") || !strings.Contains(errs, "hint: --replace") {
		t.Error(status, out, errs)
	}
}

func TestEventsAndLogs(t *testing.T) {
	f := newFake(t)
	f.events = []api.Event{
		{ID: 1, Time: epoch, Type: "instance.started", Project: "default", Name: "web"},
		{ID: 2, Time: epoch.Add(time.Second), Type: "instance.stopped", Project: "default", Name: "db", Message: "exit status 3\x1b[1m"},
	}
	_, out, errs := f.cleave("", "events", "--follow=false")
	want := "2026-03-01 12:00:00  instance.started    web\n2026-03-01 12:00:01  instance.stopped    db                exit status 3\\x1b[1m\n"
	if diff := cmp.Diff(want, out); diff != "" {
		t.Error(diff, errs)
	}
	_, out, _ = f.cleave("", "events", "db", "--follow=false", "-o", "json", "--since", "2d")
	var e api.Event
	if err := json.Unmarshal([]byte(out), &e); err != nil || e.ID != 2 {
		t.Error(out, err)
	}
	if got := f.took(); got[1] != "GET /events?follow=false&since=2026-02-27T12%3A00%3A00Z" {
		t.Error(got)
	}

	f.logs = []string{
		`{"time":"2026-03-01T12:00:00Z","stream":"stdout","data":"aGVs"}`,
		`{"time":"2026-03-01T12:00:01Z","stream":"stdout","data":"bG8KeA=="}`,
		`{"time":"2026-03-01T12:00:02Z","stream":"stderr","data":"b29wcwo="}`,
	}
	if status, out, errs := f.cleave("", "logs", "web"); status != 0 || out != "hello\nx" || errs != "oops\n" {
		t.Errorf("%d %q %q", status, out, errs)
	}
	_, out, _ = f.cleave("", "logs", "--timestamps", "-n", "5", "web")
	if want := "2026-03-01T12:00:00.000000Z hello\n2026-03-01T12:00:01.000000Z x"; out != want {
		t.Errorf("%q", out)
	}
	f.logs = append(f.logs, `{"error":{"code":"corrupt","detail":"the log is damaged"}}`)
	if status, _, errs := f.cleave("", "logs", "web"); status != 1 || !strings.HasSuffix(errs, "cleave: the log is damaged\n") {
		t.Errorf("%d %q", status, errs)
	}
}
