package storagetest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/internal/loop"
	"github.com/cleave-project/cleave/storage/internal/fsmount"
)

// Disk makes a file system of its own for a test, by a mkfs command that
// gets a file's name, and mounts it until the test ends.
func Disk(t testing.TB, size api.Bytes, fstype string, mkfs []string, options ...fsmount.Option) (dir string) {
	t.Helper()
	path, err := exec.LookPath(mkfs[0])
	if err != nil {
		t.Skipf("this test needs a file system made by %s: %v", mkfs[0], err)
	}
	dir = t.TempDir()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(size)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(path, append(mkfs[1:], f.Name())...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", path, err, out)
	}
	dev, err := loop.Attach(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	err = fsmount.Mount(fstype, dev.Path(), dir, 0, options...)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV) {
		t.Skipf("this kernel has no %s with options %v: %v", fstype, options, err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", fstype, err)
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
	return dir
}
