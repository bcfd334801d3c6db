package qemu

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine/enginetest"
	"golang.org/x/sys/unix"
)

func TestGuestGoesOnFromItsSavedMemory(t *testing.T) {
	opts := newOptions(t)
	e := open(t, opts)
	spec := imageSpec(t, "n=0; while :; do echo count $n; n=$((n+1)); sleep 1; done")
	enginetest.Start(t, e, spec)
	enginetest.WaitLog(t, e, spec.ID, "count 1")
	boot := run(t, e, spec.ID, "cat /proc/sys/kernel/random/boot_id")
	file := filepath.Join(t.TempDir(), "memory")
	if err := e.Save(t.Context(), spec.ID, file); err != nil {
		t.Fatal(err)
	}
	if st := enginetest.WaitExit(t, e, spec.ID); st != (api.ExitStatus{Reason: "poweroff"}) {
		t.Errorf("it ended as %+v", st)
	}
	if info, err := os.Stat(file); err != nil || info.Size() < 1<<20 || info.Mode().Perm() != 0o600 {
		t.Errorf("saved: %v, %v", info, err)
	}
	if err := e.Clean(t.Context(), spec.ID); err != nil {
		t.Fatal(err)
	}
	before := strings.Count(enginetest.Log(t, e, spec.ID), "count ")
	spec.Machine.Restore = file
	enginetest.Start(t, e, spec)
	if again := run(t, e, spec.ID, "cat /proc/sys/kernel/random/boot_id"); again != boot {
		t.Errorf("it is another boot: %q, %q", boot, again)
	}
	wait(t, func() string {
		if strings.Count(enginetest.Log(t, e, spec.ID), "count ") > before {
			return "goes on"
		}
		return ""
	})
}

func TestGuestRunsOnWhenTheDiskIsFull(t *testing.T) {
	e := newEngine(t)
	spec := imageSpec(t, "while :; do sleep 1; done")
	enginetest.Start(t, e, spec)
	small := t.TempDir()
	if err := unix.Mount("small", small, "tmpfs", 0, "size=8m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(small, unix.MNT_DETACH) })
	err := e.Save(t.Context(), spec.ID, filepath.Join(small, "memory"))
	if !api.IsCode(err, api.CodeNoSpace) {
		t.Errorf("saving on a full disk gives %v", err)
	}
	if left, _ := os.ReadDir(small); len(left) > 0 {
		t.Errorf("left is %v", left)
	}
	if out := run(t, e, spec.ID, "echo alive"); out != "alive\n" {
		t.Errorf("the guest says %q", out)
	}
}
