package lab

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cleave-project/cleave/lab/appliance"
)

// Guest makes what a guest of the hosts' own kernel boots: the kernel, and an
// initramfs of executable files, by their paths in it, one of which is init.
// /modules has the drivers that a virtual machine needs, and those that are
// named; /modules/order their names, in the order in which they are loaded.
func Guest(t testing.TB, files map[string][]byte, modules ...string) (kernel, initramfs string) {
	t.Helper()
	o := appliance.Options{Kernel: os.Getenv(kernelVariable), Tell: func(s string) { t.Log(s) }}
	o.Cache, _ = Cache()
	dir := t.TempDir()
	initramfs = filepath.Join(dir, "initramfs")
	f, err := os.Create(initramfs)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if kernel, err = o.Guest(t.Context(), f, files, modules...); err != nil {
		t.Skipf("needs a kernel for guests: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return kernel, initramfs
}
