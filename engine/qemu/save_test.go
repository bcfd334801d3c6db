package qemu

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine/enginetest"
	"golang.org/x/sys/unix"
)

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
