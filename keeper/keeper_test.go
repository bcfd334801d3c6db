package keeper

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

func TestStartRunsGuestInItsNamespaces(t *testing.T) {
	k := newKeeper(t)
	g := k.start(k.request("look", "look"))
	if g.PID == 0 || g.StartTime == 0 || g.Started.IsZero() || g.Exited {
		t.Errorf("guest %+v", g)
	}
	end := k.wait("look")
	if end.ExitCode != 0 || !end.ExitKnown {
		t.Errorf("end %+v, stderr %s", end, k.logs("look", "stderr"))
	}
	want := `args 2 env GUEST=look GORACE=atexit_sleep_ms=0
uid 0 gid 0 pid 1
sid 1
fd 0 access 0 nonblock false
fd 1 access 2 nonblock false
fd 2 access 2 nonblock false
cwd /
umask 022
soft limit of open files 1024
`
	if diff := cmp.Diff(want, k.logs("look", "stdout")); diff != "" {
		t.Error(diff)
	}
}

func TestStartPassesFilesAndNothingElse(t *testing.T) {
	k := newKeeper(t)
	for i := range 3 { // that the keeper has more of its own open
		k.start(k.request(fmt.Sprint("other", i), "sleep"))
	}
	r := k.request("look", "look")
	for range 5 {
		f, err := os.Open("/dev/null")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		r.Files = append(r.Files, f)
	}
	k.start(r)
	k.wait("look")
	out := k.logs("look", "stdout")
	if n := strings.Count(out, "fd "); n != 8 || !strings.Contains(out, "fd 7 access 0") {
		t.Errorf("the guest has not 8 descriptors:\n%s", out)
	}
}

func TestGuestIsOrdinaryForTheOOMKiller(t *testing.T) {
	k := newKeeper(t)
	g := k.start(k.request("a", "sleep"))
	want := map[int]string{g.PID: "0"}
	if log, err := os.ReadFile(logPath(k.socket)); err != nil || !strings.Contains(string(log), "not protected") {
		want[k.pid()] = "-999" // else the tests run without CAP_SYS_RESOURCE
	}
	for pid, want := range want {
		got, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid))
		if err != nil || strings.TrimSpace(string(got)) != want {
			t.Errorf("pid %d: oom_score_adj %s %v, want %s", pid, got, err, want)
		}
	}
}

// What a guest uses of inotify instances and namespaces is charged to the
// owner of its user namespace. That must be nobody else: not the host's root,
// whom all guests would share.
func TestGuestOwnsItsUserNamespace(t *testing.T) {
	k := newKeeper(t)
	g := k.start(k.request("mine", "sleep"))
	k.ready("mine")
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", g.PID))
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	owner, err := unix.IoctlGetUint32(int(ns.Fd()), unix.NS_GET_OWNER_UID)
	if err != nil || owner != testOwner {
		t.Errorf("the owner is user %d, %v, want %d", owner, err, testOwner)
	}
	// Nothing of that stays with the keeper.
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", k.pid()))
	if err != nil || !strings.Contains(string(status), "\nUid:\t0\t0\t0\t0\n") {
		t.Errorf("the keeper: %v\n%s", err, status)
	}
}

func TestExitStatusIsReportedOnce(t *testing.T) {
	k := newKeeper(t)
	exits, err := k.Exits(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	others, err := k.Exits(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	k.start(k.request("seven", "exit", "7"))
	k.start(k.request("killed", "sleep"))
	if err := k.Signal(t.Context(), "killed", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	want := map[string]Guest{
		"seven":  {ID: "seven", Exited: true, ExitKnown: true, ExitCode: 7},
		"killed": {ID: "killed", Exited: true, ExitKnown: true, ExitCode: 137, Signal: "SIGKILL"},
	}
	for name, ch := range map[string]<-chan Guest{"first": exits, "second": others} {
		got := make(map[string]Guest)
		for range 2 {
			g := <-ch
			got[g.ID] = g
		}
		if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(Guest{}, "PID", "StartTime", "Started", "Ended")); diff != "" {
			t.Errorf("%s subscriber: %s", name, diff)
		}
	}
	select {
	case g := <-exits:
		t.Errorf("another exit %+v", g)
	default:
	}
	guests, err := k.List(t.Context())
	if err != nil || len(guests) != 2 || !guests[0].Exited || !guests[1].Exited {
		t.Errorf("list %+v %v", guests, err)
	}
}

func TestExitComesAfterAllOutputIsLogged(t *testing.T) {
	k := newKeeper(t)
	exits, err := k.Exits(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const lines = 20000
	k.start(k.request("a", "lines", fmt.Sprint(lines)))
	<-exits
	var out, errs strings.Builder
	for i := range lines {
		fmt.Fprintf(&out, "out %d\n", i)
		fmt.Fprintf(&errs, "err %d\n", i)
	}
	if got := k.logs("a", "stdout"); got != out.String() {
		t.Errorf("stdout: %d bytes, want %d in order", len(got), out.Len())
	}
	if got := k.logs("a", "stderr"); got != errs.String() {
		t.Errorf("stderr: %d bytes, want %d in order", len(got), errs.Len())
	}
}

func TestProcessLeftBehindDoesNotHoldUpTheEnd(t *testing.T) {
	k := newKeeper(t)
	r := k.request("a", "background")
	r.Clone, r.UIDMap, r.GIDMap, r.Owner = 0, nil, nil, 0 // a PID namespace would end it
	k.start(r)
	if g := k.wait("a"); g.ExitCode != 5 {
		t.Errorf("end %+v", g)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(k.logs("a", "stderr")))
	if err != nil {
		t.Fatal(err)
	}
	killPID(t, pid)
}

func TestForgetAndStopRefuseWhileGuestRuns(t *testing.T) {
	k := newKeeper(t)
	ctx := t.Context()
	k.start(k.request("a", "sleep"))
	wantCode(t, k.Forget(ctx, "a"), api.CodeConflict)
	wantCode(t, k.Forget(ctx, "b"), api.CodeNotFound)
	wantCode(t, k.Signal(ctx, "b", syscall.SIGTERM), api.CodeNotFound)
	wantCode(t, k.Stop(ctx), api.CodeInUse)
	_, err := k.Start(ctx, k.request("a", "sleep"))
	wantCode(t, err, api.CodeExists)

	if err := unix.Kill(k.pid(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	k.ready("a")
	if g := k.find("a"); g.Exited {
		t.Error("SIGTERM to the keeper ended its guest")
	}
	k.Signal(ctx, "a", syscall.SIGKILL)
	k.wait("a")
	wantCode(t, k.Signal(ctx, "a", syscall.SIGKILL), api.CodeConflict)
	wantCode(t, k.Stop(ctx), api.CodeInUse) // the end is not forgotten
}

func TestStartUndoesWhatFailed(t *testing.T) {
	k := newKeeper(t)
	script, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer script.Close()
	tests := []struct {
		name   string
		change func(*StartRequest)
		code   api.Code
		text   string
	}{
		{"not executable", func(r *StartRequest) { r.Exe = script }, api.CodeInvalid, "execute"},
		{"no id maps", func(r *StartRequest) { r.GIDMap = nil }, api.CodeInvalid, "id maps"},
		{"overlapping maps", func(r *StartRequest) { r.UIDMap = append(r.UIDMap, r.UIDMap...) }, api.CodeInvalid, "overlap"},
		{"foreign flags", func(r *StartRequest) { r.Clone |= unix.CLONE_VM }, api.CodeInvalid, "CLONE_NEW"},
		{"no cgroup", func(r *StartRequest) { r.CgroupProcs = []string{"/sys/fs/cgroup/none/cgroup.procs"} }, api.CodeInvalid, "/sys/fs/cgroup/none"},
		{"cgroup is none", func(r *StartRequest) { r.Cgroup = script }, api.CodeConflict, "no cgroup"},
		{"no directory", func(r *StartRequest) { r.Dir += "/none" }, api.CodeInternal, "none/stdout"},
		{"relative directory", func(r *StartRequest) { r.LogDir = "log" }, api.CodeInvalid, "absolute"},
		{"no arguments", func(r *StartRequest) { r.Args = nil }, api.CodeInvalid, "arguments"},
	}
	before := countFDs(t, k.pid())
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := k.request("a", "sleep")
			test.change(r)
			_, err := k.Start(t.Context(), r)
			wantCode(t, err, test.code)
			if err != nil && !strings.Contains(err.Error(), test.text) {
				t.Errorf("error %q does not say %q", err, test.text)
			}
		})
	}
	if guests, err := k.List(t.Context()); err != nil || len(guests) != 0 {
		t.Errorf("list %v %v", guests, err)
	}
	for _, name := range []string{"stdin", "stdout", "stderr"} {
		if _, err := os.Lstat(k.dir + "/a/" + name); err == nil {
			t.Errorf("%s is left", name)
		}
	}
	if after := countFDs(t, k.pid()); after > before+1 { // a connection
		t.Errorf("the keeper has %d descriptors, %d before", after, before)
	}
}

func countFDs(t testing.TB, pid int) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestKeeperLeaksNothingThroughManyLives(t *testing.T) {
	k := newKeeper(t)
	cycle := func(id string) {
		r := k.request(id, "exit", "0")
		r.Terminal = strings.HasPrefix(id, "tty")
		k.start(r)
		k.wait(id)
		if err := k.Forget(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	cycle("first")
	cycle("tty-first")
	before, held := countFDs(t, k.pid()), countFDs(t, k.holderPID())
	for i := range 10 {
		cycle(fmt.Sprint("g", i))
		cycle(fmt.Sprint("tty", i))
	}
	if _, err := k.List(t.Context()); err != nil {
		t.Fatal(err)
	}
	// A connection may come or go.
	if after := countFDs(t, k.pid()); after > before+2 {
		t.Errorf("the keeper has %d descriptors, %d before", after, before)
	}
	// The holder is told, and not waited for.
	deadline := time.Now().Add(hang)
	for countFDs(t, k.holderPID()) > held+1 {
		if time.Now().After(deadline) {
			t.Fatalf("the holder has %d descriptors, %d before", countFDs(t, k.holderPID()), held)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestCancelledCallFailsAndNextOneWorks(t *testing.T) {
	k := newKeeper(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := k.List(ctx); err == nil {
		t.Error("list with a cancelled context succeeded")
	}
	_, err := k.Start(ctx, k.request("a", "sleep"))
	wantCode(t, err, api.CodeCancelled)
	if guests, err := k.List(t.Context()); err != nil || len(guests) != 0 {
		t.Errorf("list %v %v", guests, err)
	}
}
