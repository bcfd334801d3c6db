package keeper

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// makeCgroup makes a cgroup of the test's own below a hierarchy's root.
func makeCgroup(t testing.TB, root string) string {
	t.Helper()
	needRoot(t)
	dir := filepath.Join(root, fmt.Sprintf("keeper-test-%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skipf("needs a writable cgroup hierarchy: %v", err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Errorf("remove the cgroup: %v", err)
		}
	})
	return dir
}

func TestStartIsBornInV1Cgroups(t *testing.T) {
	var procs []string
	for _, controller := range []string{"pids", "freezer", "memory"} {
		root := filepath.Join("/sys/fs/cgroup", controller)
		if _, err := os.Stat(filepath.Join(root, "tasks")); err != nil {
			t.Skipf("needs the cgroup v1 controller %s: %v", controller, err)
		}
		procs = append(procs, filepath.Join(makeCgroup(t, root), "cgroup.procs"))
	}
	k := newKeeper(t)
	bad := k.request("bad", "sleep")
	bad.CgroupProcs = append(slices.Clone(procs), "/sys/fs/cgroup/pids/none/cgroup.procs")
	if _, err := k.Start(t.Context(), bad); err == nil {
		t.Error("started in a cgroup that is not there")
	}
	for _, path := range procs {
		if text, err := os.ReadFile(path); err != nil || len(text) > 0 {
			t.Errorf("%s has %q %v after a start that failed", path, text, err)
		}
	}
	r := k.request("a", "sleep")
	r.CgroupProcs = procs
	g := k.start(r)
	for _, path := range procs {
		text, err := os.ReadFile(path)
		if err != nil || strings.TrimSpace(string(text)) != fmt.Sprint(g.PID) {
			t.Errorf("%s has %q %v, want only %d", path, text, err, g.PID)
		}
	}
	k.Signal(t.Context(), "a", unix.SIGKILL)
	k.wait("a")
}

func TestWayBackFromCgroup(t *testing.T) {
	tests := []struct{ dir, there, was, want string }{
		{"/sys/fs/cgroup/pids/cleave/a", "/cleave/a", "/", "/sys/fs/cgroup/pids"},
		{"/sys/fs/cgroup/pids/cleave/a", "/cleave/a", "/cleave/keeper", "/sys/fs/cgroup/pids/cleave/keeper"},
		{"/sys/fs/cgroup/pids/cleave/a", "/cleave/a", "/system.slice/cleave", "/sys/fs/cgroup/pids/system.slice/cleave"},
		// Mounted without the upper part, as in an older container.
		{"/sys/fs/cgroup/pids/a", "/docker/x/a", "/docker/x", "/sys/fs/cgroup/pids"},
	}
	for _, test := range tests {
		if got := wayBack(test.dir, test.there, test.was); got != test.want {
			t.Errorf("from %s to %s: %s, want %s", test.there, test.was, got, test.want)
		}
	}
}

func TestStartIsBornInV2Cgroup(t *testing.T) {
	root := ""
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
			root = dir
		}
	}
	if root == "" {
		t.Skip("needs a cgroup v2 hierarchy at /sys/fs/cgroup or /sys/fs/cgroup/unified")
	}
	dir := makeCgroup(t, root)
	cgroup, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer cgroup.Close()
	k := newKeeper(t)
	r := k.request("a", "cgroup")
	r.Cgroup = cgroup
	g := k.start(r)
	k.ready("a")
	if out := k.logs("a", "stdout"); !strings.Contains(out, "0::/\n") {
		t.Errorf("the guest's cgroup namespace is not rooted at its own cgroup:\n%s", out)
	}
	text, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil || strings.TrimSpace(string(text)) != fmt.Sprint(g.PID) {
		t.Errorf("the cgroup has %q %v, want %d", text, err, g.PID)
	}
	k.Signal(t.Context(), "a", unix.SIGKILL)
	k.wait("a")
}

func TestCloneErrorSaysWhatIsMissing(t *testing.T) {
	all := &startMessage{Args: []string{"/init"}, Clone: allNamespaces}
	tests := []struct {
		err  error
		code api.Code
		text string
	}{
		{unix.ENOSPC, api.CodeNoResources, "limit on namespaces"},
		{unix.EUSERS, api.CodeNoResources, "limit on namespaces"},
		{unix.EAGAIN, api.CodeNoResources, "limit on processes"},
		{unix.ENOMEM, api.CodeNoResources, "memory"},
		{unix.EPERM, api.CodeForbidden, "not permitted"},
		{unix.EBUSY, api.CodeConflict, "cgroup"},
		{unix.EINVAL, api.CodeInvalid, "id maps"},
		{unix.ENOENT, api.CodeInvalid, `execute "/init"`},
		{unix.EIO, api.CodeInternal, "user, mnt, pid, net, ipc, uts, cgroup"},
	}
	for _, test := range tests {
		err := cloneError(test.err, all)
		wantCode(t, err, test.code)
		if !strings.Contains(err.Error(), test.text) || !errors.Is(err, test.err) {
			t.Errorf("%v: %q does not say %q", test.err, err, test.text)
		}
	}
}
