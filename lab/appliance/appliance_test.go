package appliance

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	goerofs "github.com/erofs/go-erofs"
)

// cache is the one of all tests.
const cache = "/var/cache/cleave-test"

func build(t *testing.T, dir string) *Image {
	t.Helper()
	bin, err := filepath.Abs("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(bin, "cleaved")); err != nil {
		t.Skipf("needs our programs: %v (make build)", err)
	}
	begin := time.Now()
	img, err := Build(t.Context(), Options{Dir: dir, Cache: cache, Bin: bin, Tell: func(s string) { t.Log(s) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { img.Close() })
	t.Logf("%s in %s", img.Dir, time.Since(begin).Round(time.Millisecond))
	return img
}

func TestImageHoldsWhatAHostNeedsAndIsTheSameTwice(t *testing.T) {
	img, again := build(t, t.TempDir()), build(t, t.TempDir())
	for _, f := range []string{fileKernel, fileInitramfs, fileRoot, fileModules, fileRecord} {
		a, err := os.ReadFile(filepath.Join(img.Dir, f))
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(again.Dir, f))
		if err != nil {
			t.Fatal(err)
		}
		if len(a) == 0 || !bytes.Equal(a, b) {
			t.Errorf("%s has %d bytes, and others when it is built again", f, len(a))
		}
		t.Logf("%s: %d KiB", f, len(a)>>10)
	}
	f, err := os.Open(img.Root())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	root, err := goerofs.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		"usr/sbin/mkfs.btrfs", "usr/sbin/mkfs.ext4", "usr/bin/mkfs.erofs", "usr/bin/ip", "usr/sbin/nft", "usr/bin/cleaved",
		"usr/lib/x86_64-linux-gnu/libc.so.6", "usr/lib64/ld-linux-x86-64.so.2", "usr/sbin/init", "usr/bin/sh", "etc/inittab",
	} {
		if _, err := fs.Lstat(root, name); err != nil {
			t.Error(err)
		}
	}
	for _, p := range []string{"cleaved", "busybox"} {
		content, err := fs.ReadFile(root, programs[p])
		if err != nil {
			t.Fatal(err)
		}
		if program, err := os.ReadFile("../../bin/" + p); err != nil || !bytes.Equal(content, program) {
			t.Errorf("%s isn't what was built: %v", p, err)
		}
	}
	if _, err := fs.Lstat(root, "usr/share/doc"); err == nil {
		t.Error("it has documentation that nobody reads there")
	}
	if other, err := fs.ReadLink(root, "bin"); err != nil || other != "usr/bin" {
		t.Errorf("/bin is %q, %v", other, err)
	}
}

func TestImagesThatNobodyUsesAreRemoved(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"used", "unused", "new"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, fileRecord), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	used := &Image{Dir: filepath.Join(dir, "used")}
	if err := used.use(); err != nil {
		t.Fatal(err)
	}
	defer used.Close()
	(&Options{Dir: dir}).prune(&Image{Dir: filepath.Join(dir, "new")})
	for name, want := range map[string]bool{"used": true, "unused": false, "new": true} {
		if _, err := os.Stat(filepath.Join(dir, name)); (err == nil) != want {
			t.Errorf("%s is there: %v", name, err == nil)
		}
	}
}
