package vmm

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/enginetest"
)

// run runs a command in a guest, and returns all that it wrote.
func run(t testing.TB, e *Engine, id, script string) string {
	t.Helper()
	out, _, _ := enginetest.Exec(t, e, id, "/bin/sh", "-c", script+" 2>&1")
	return strings.TrimSpace(out)
}

func TestKernelPanicIsTold(t *testing.T) {
	e := newEngine(t)
	spec := newSpec(t, "echo working; sleep 1; echo c > /proc/sysrq-trigger; sleep 1000")
	enginetest.Start(t, e, spec)
	if s := enginetest.WaitExit(t, e, spec.ID); s.Reason != "panic" || s.Code == 0 {
		t.Errorf("exit %+v\n%s", s, enginetest.Log(t, e, spec.ID))
	}
	if log := enginetest.Log(t, e, spec.ID); !strings.Contains(log, "working") || !strings.Contains(log, "Kernel panic") {
		t.Errorf("log %s", log)
	}
}

func TestDevicesComeAndGo(t *testing.T) {
	e := newEngine(t)
	spec := newSpec(t, "exec sleep 1000")
	enginetest.Start(t, e, spec)
	d := engine.Disk{ID: "data", Path: filepath.Join(t.TempDir(), engine.VolumeDisk), Size: 32 * api.MiB, Target: "/data"}
	for range 2 {
		if err := e.AttachDisk(t.Context(), spec.ID, d); err != nil {
			t.Fatal(err)
		}
		if err := e.AttachDisk(t.Context(), spec.ID, d); !api.IsCode(err, api.CodeExists) {
			t.Errorf("the same once more: %v", err)
		}
		if out := run(t, e, spec.ID, "echo x >> /data/f; cat /proc/mounts | grep -c ' /data '"); out != "1" {
			t.Errorf("%q", out)
		}
		if err := e.DetachDisk(t.Context(), spec.ID, "data"); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.DetachDisk(t.Context(), spec.ID, "root"); !api.IsCode(err, api.CodeUnsupported) {
		t.Errorf("take the root away: %v", err)
	}
	if err := e.DetachDisk(t.Context(), spec.ID, "none"); !api.IsCode(err, api.CodeNotFound) {
		t.Errorf("take away what isn't there: %v", err)
	}
}

func TestRootDiskGrowsWhileTheGuestRuns(t *testing.T) {
	e := newEngine(t)
	spec := newSpec(t, "exec sleep 1000")
	enginetest.Start(t, e, spec)
	if err := e.GrowRoot(t.Context(), spec.ID, 128*api.MiB); err != nil {
		t.Fatal(err)
	}
	var kilobytes int
	if _, err := fmt.Sscan(run(t, e, spec.ID, "df -k / | tail -1 | awk '{print $2}'"), &kilobytes); err != nil || kilobytes < 100<<10 {
		t.Errorf("%d KiB, %v", kilobytes, err)
	}
}

func TestGuestRunsOnWhenTheDiskIsFull(t *testing.T) {
	e := newEngine(t)
	spec := newSpec(t, "exec sleep 1000")
	enginetest.Start(t, e, spec)
	small := t.TempDir()
	if err := unix.Mount("small", small, "tmpfs", 0, "size=8m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(small, unix.MNT_DETACH) })
	if err := e.Save(t.Context(), spec.ID, filepath.Join(small, "memory")); !api.IsCode(err, api.CodeNoSpace) {
		t.Errorf("saving on a full disk gives %v", err)
	}
	if left, _ := os.ReadDir(small); len(left) > 0 {
		t.Errorf("left is %v", left)
	}
	if out := run(t, e, spec.ID, "echo alive"); out != "alive" {
		t.Errorf("the guest says %q", out)
	}
	// What another engine saved is not for this one.
	foreign := filepath.Join(t.TempDir(), "memory")
	if err := os.WriteFile(foreign, []byte("QEVM"), 0o600); err != nil {
		t.Fatal(err)
	}
	machine := *spec.Machine
	machine.Restore = foreign
	spec.Machine = &machine
	if err := e.Fits(t.Context(), spec); !api.IsCode(err, api.CodeUnsupported) {
		t.Errorf("going on from a foreign file: %v", err)
	}
}

func TestMonitorIsShutIn(t *testing.T) {
	e := newEngine(t)
	spec := newSpec(t, "exec sleep 1000")
	g := enginetest.Start(t, e, spec)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", g.PID))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("no %q in\n%s", want, status)
		}
	}
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", g.PID))
	if err != nil || len(threads) < 3 {
		t.Fatalf("%v, %v", threads, err)
	}
	for _, path := range threads {
		s, err := os.ReadFile(path)
		if err == nil && !strings.Contains(string(s), "Seccomp:\t2") {
			t.Errorf("%s: no filter", path)
		}
	}
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", g.PID))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && strings.HasPrefix(to, "/lab/bin") {
			t.Errorf("the monitor has %s", to)
		}
	}
}

func TestSystemIsInspected(t *testing.T) {
	e := newEngine(t)
	spec := newSpec(t, "")
	spec.System = true
	spec.Proc.Args = []string{"/bin/sh", "-c", "echo $((1+$(cat /root/boots 2>/dev/null || echo 0))) > /root/boots; trap : TERM; while :; do sleep 1; done"}
	enginetest.Start(t, e, spec)
	if out := run(t, e, spec.ID, "sync; cat /root/boots"); out != "1" {
		t.Errorf("boots %q", out)
	}
	v, err := e.Inspect(t.Context(), spec.ID)
	if err != nil || v.Accel != "kvm" || v.Agent != "cleave" || v.Reboots != 0 {
		t.Errorf("%+v, %v", v, err)
	}
}
