package container

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/enginetest"
)

// debianImage is Debian with systemd, made once per machine: it takes half a
// minute.
func debianImage(t testing.TB) engine.Image {
	t.Helper()
	const dir = "/var/tmp/cleave-test-cache"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(dir, "debian-bookworm-systemd.erofs")
	if _, err := os.Stat(image); err == nil {
		return engine.Image{Digest: "sha256:debian", EROFS: image}
	}
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		t.Skipf("no system image can be made: %v (install mmdebstrap)", err)
	}
	tar := filepath.Join(t.TempDir(), "root.tar")
	if out, err := exec.Command("mmdebstrap", "--variant=minbase", "--include=systemd-sysv,dbus,iproute2", "bookworm", tar).CombinedOutput(); err != nil {
		t.Skipf("no system image can be made: mmdebstrap: %v: %s", err, out)
	}
	root := filepath.Join(t.TempDir(), "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	output(t, "tar", "-C", root, "--numeric-owner", "--xattrs", "-xf", tar, "--exclude=./dev/*")
	output(t, "mkfs.erofs", image+".new", root)
	if err := os.Rename(image+".new", image); err != nil {
		t.Fatal(err)
	}
	return engine.Image{Digest: "sha256:debian", EROFS: image}
}

// inGuest runs a command by the agent.
func inGuest(t testing.TB, e *Engine, id string, command ...string) (string, int) {
	t.Helper()
	out, _, code := enginetest.Exec(t, e, id, command...)
	return strings.TrimSpace(out), code
}

func systemSpec(t testing.TB) *engine.Spec {
	spec := guestSpec(t, "")
	spec.Image, spec.System = debianImage(t), true
	spec.Proc = engine.Process{Args: []string{"/sbin/init"}, TTY: true}
	spec.Hosts = "127.0.0.1 localhost\n"
	return spec
}

func TestSystemGuestReachesItsTargetAndStopsCleanly(t *testing.T) {
	spec := systemSpec(t)
	e := newEngine(t)
	checkLeaks(t, e)
	spec.Resources = api.Resources{Memory: 512 * api.MiB, PIDs: 500}
	begin := time.Now()
	enginetest.Start(t, e, spec)
	t.Logf("init executed after %v", time.Since(begin))
	out, code := inGuest(t, e, spec.ID, "sh", "-c", "until [ -S /run/systemd/private ]; do sleep 0.05; done; systemctl is-system-running --wait")
	t.Logf("%s after %v", out, time.Since(begin))
	if code != 0 || out != "running" {
		failed, _ := inGuest(t, e, spec.ID, "sh", "-c", "systemctl --failed --no-legend; journalctl -b -p warning --no-pager; systemctl list-jobs")
		t.Errorf("system is %s: %s\n%s", out, failed, enginetest.Log(t, e, spec.ID))
	}
	for command, want := range map[string]string{
		"systemd-detect-virt -c":             "container-other",
		"cat /proc/1/comm":                   "systemd",
		"hostname":                           "guest",
		"systemctl is-active default.target": "active",
		"ls -d /sys/fs/cgroup/*/system.slice /sys/fs/cgroup/system.slice 2>/dev/null | grep -q . && echo delegated": "delegated",
	} {
		if out, _ := inGuest(t, e, spec.ID, "sh", "-c", command); out != want {
			t.Errorf("%s: %q, want %q", command, out, want)
		}
	}
	begin = time.Now()
	if err := e.Signal(t.Context(), spec.ID, "SIGRTMIN+3"); err != nil {
		t.Fatal(err)
	}
	st := enginetest.WaitExit(t, e, spec.ID)
	t.Logf("stopped after %v: %+v", time.Since(begin), st)
	if st.Code != 0 || st.Signal != "" {
		t.Errorf("status %+v", st)
	}
	if !strings.Contains(enginetest.Log(t, e, spec.ID), "Reached target") {
		t.Errorf("console shows %q", enginetest.Log(t, e, spec.ID))
	}
}

func TestSystemGuestWithoutInitIsRefused(t *testing.T) {
	e := newEngine(t)
	checkLeaks(t, e)
	for args, code := range map[string]api.Code{"/sbin/no-init": api.CodeNotFound, "/etc/passwd": api.CodeInvalid} {
		spec := guestSpec(t, "")
		spec.System, spec.Proc.Args = true, []string{args}
		_, err := e.Start(t.Context(), spec)
		var ae *api.Error
		if !errors.As(err, &ae) || ae.Code != code || !strings.Contains(err.Error(), args) {
			t.Errorf("error %v", err)
		}
	}
}
