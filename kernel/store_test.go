package kernel

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// add imports a package or a kernel, and fails the test if that does.
func add(t *testing.T, s *Store, b []byte, in api.KernelAdd) *api.Kernel {
	t.Helper()
	k, err := s.Import(t.Context(), sent(b), in)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestPackageBecomesAKernel(t *testing.T) {
	dir := t.TempDir()
	s := reopen(t, dir)
	k := add(t, s, kernelDeb(testRelease), api.KernelAdd{})
	if k.Name != testRelease || k.Version != testRelease || k.Kind != api.KindVM || k.Arch != "amd64" || !k.Default || k.Size == 0 ||
		k.Source != "package linux-image-"+testRelease+" 1:2.0-1" {
		t.Errorf("%+v", k)
	}
	// A second daemon finds the same.
	if d := cmp.Diff(s.List(), reopen(t, dir).List()); d != "" {
		t.Error(d)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "kernels", temporary+"*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestKernelWithModulesOfTheHost(t *testing.T) {
	dir := t.TempDir()
	s := reopen(t, dir)
	for _, f := range modulesOf(testRelease) {
		write(t, filepath.Join(dir, f.name), f.content)
	}
	modules := filepath.Join(dir, "lib/modules", testRelease)
	// What is in such a directory beside modules is left out, and links out
	// of it are not followed.
	write(t, filepath.Join(modules, "build/Makefile"), []byte("x"))
	if err := os.Symlink("/etc/passwd", filepath.Join(modules, "kernel/passwd.ko")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(modules, "kernel/fifo.ko"), 0o600); err != nil {
		t.Fatal(err)
	}
	k, err := s.Add(t.Context(), api.KernelAdd{Image: write(t, filepath.Join(dir, "bzImage"), bzImageOf(testRelease)), Modules: modules, Name: "mine"})
	if err != nil || k.Name != "mine" || k.Version != testRelease {
		t.Fatalf("%+v %v", k, err)
	}
	if _, err := s.Boot(t.Context(), api.KindVM, "amd64", "mine"); err != nil {
		t.Error(err)
	}
	// Ubuntu has modules in a package of their own.
	deb := write(t, filepath.Join(dir, "modules.deb"), debOf("linux-modules", modulesOf(testRelease)...))
	if _, err := s.Add(t.Context(), api.KernelAdd{Image: filepath.Join(dir, "bzImage"), Modules: deb, Name: "two"}); err != nil {
		t.Error(err)
	}
}

func TestPackedKernelIsKeptUnpacked(t *testing.T) {
	s := newStore(t)
	plain := imageOf("RSC\x05", "6.12.1-riscv64")
	k := add(t, s, gzipOf(plain), api.KernelAdd{})
	got, err := os.ReadFile(filepath.Join(s.Dir, k.Name, fileImage))
	if err != nil || !bytes.Equal(got, plain) || k.Arch != "riscv64" {
		t.Errorf("%d bytes, %+v %v", len(got), k, err)
	}
}

func TestWhatCanNotBeAKernelIsRefused(t *testing.T) {
	dir := t.TempDir()
	s := reopen(t, dir)
	image := write(t, filepath.Join(dir, "bzImage"), bzImageOf(testRelease))
	incomplete := modulesOf(testRelease)[:8]
	for name, c := range map[string]struct {
		in   api.KernelAdd
		code api.Code
		want string
	}{
		"nothing":           {api.KernelAdd{}, api.CodeInvalid, "no kernel given"},
		"relative":          {api.KernelAdd{Image: "vmlinuz"}, api.CodeInvalid, "absolute"},
		"bad name":          {api.KernelAdd{Image: image, Name: "../x"}, api.CodeInvalid, "valid name"},
		"container":         {api.KernelAdd{Image: image, Kind: api.KindContainer}, api.CodeInvalid, "container"},
		"missing":           {api.KernelAdd{Image: "/nonexistent/vmlinuz"}, api.CodeNotFound, "no such file"},
		"a directory":       {api.KernelAdd{Image: dir}, api.CodeNotFound, "regular"},
		"not a kernel":      {api.KernelAdd{Image: write(t, filepath.Join(dir, "text"), []byte(strings.Repeat("x", 4096)))}, api.CodeInvalid, "not a kernel"},
		"another kind":      {api.KernelAdd{Image: image, Kind: api.KindPVM}, api.CodeInvalid, "not for pvm"},
		"modules not there": {api.KernelAdd{Image: image, Modules: dir + "/none"}, "", "no such file"},
		"no modules in it":  {api.KernelAdd{Image: image, Modules: t.TempDir()}, api.CodeInvalid, "no modules"},
		"modules of another": {
			api.KernelAdd{Image: image, Modules: write(t, filepath.Join(dir, "m.deb"), debOf("m", modulesOf("5.0.0")...))},
			api.CodeInvalid, "modules are of 5.0.0",
		},
		"modules missing": {
			api.KernelAdd{Image: image, Modules: write(t, filepath.Join(dir, "i.deb"), debOf("m", incomplete...))},
			api.CodeUnsupported, "module virtio_pci is neither built in nor among its modules",
		},
		"two kernels": {
			api.KernelAdd{Image: write(t, filepath.Join(dir, "2.deb"), debOf("p", file{"boot/vmlinuz-1", bzImageOf("1")}, file{"boot/vmlinuz-2", bzImageOf("2")}))},
			api.CodeInvalid, "two kernels",
		},
		"an empty package": {api.KernelAdd{Image: write(t, filepath.Join(dir, "0.deb"), debOf("meta"))}, api.CodeInvalid, "no kernel in it"},
		"a path in a package": {
			api.KernelAdd{Image: write(t, filepath.Join(dir, "p.deb"), debOf("p", file{"lib/modules/../../etc/x", nil}, file{"lib/modules/ev il/kernel/x.ko", nil}))},
			api.CodeInvalid, "release of a kernel",
		},
		"a damaged module": {
			api.KernelAdd{Image: image, Modules: write(t, filepath.Join(dir, "d.deb"), debOf("m", append(modulesOf(testRelease), file{"lib/modules/" + testRelease + "/kernel/x.ko", []byte("x")})...))},
			api.CodeInvalid, "x.ko",
		},
	} {
		_, err := s.Add(t.Context(), c.in)
		if err == nil || !strings.Contains(err.Error(), c.want) || (c.code != "" && !api.IsCode(err, c.code)) {
			t.Errorf("%s: %v (%s), want %s %q", name, err, api.AsError(err).Code, c.code, c.want)
		}
	}
	if list := s.List(); len(list) > 0 {
		t.Errorf("%v are there", names(list))
	}
	if left, _ := os.ReadDir(s.Dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestSameKernelTwiceIsOne(t *testing.T) {
	s := newStore(t)
	first := add(t, s, kernelDeb(testRelease), api.KernelAdd{})
	if d := cmp.Diff(first, add(t, s, kernelDeb(testRelease), api.KernelAdd{})); d != "" {
		t.Error(d)
	}
	other := kernelDeb(testRelease)
	other = append(other, arOf(file{"x", nil})[len(arMagic):]...)
	if _, err := s.Import(t.Context(), sent(bzImageOf(testRelease)), api.KernelAdd{}); !api.IsCode(err, api.CodeExists) {
		t.Errorf("another kernel of that name: %v", err)
	}
	add(t, s, other, api.KernelAdd{}) // bytes behind the files don't matter
}

func TestNewerBuildTakesItsPlaceInOneStep(t *testing.T) {
	dir := t.TempDir()
	s := reopen(t, dir)
	add(t, s, kernelDeb(testRelease), api.KernelAdd{})
	before, err := s.Boot(t.Context(), api.KindVM, "amd64", "")
	if err != nil {
		t.Fatal(err)
	}
	newer := debOf("linux-image", append(modulesOf(testRelease), file{"boot/vmlinuz-" + testRelease, append(bzImageOf(testRelease), 1)})...)
	if _, err := s.add(t.Context(), sent(newer), api.KernelAdd{}, "x", true); err != nil {
		t.Fatal(err)
	}
	after, err := s.Boot(t.Context(), api.KindVM, "amd64", "")
	if err != nil || after.Image != before.Image || after.Initrd == before.Initrd {
		t.Errorf("%+v %+v %v", before, after, err)
	}
	if l := names(s.List()); len(l) != 1 || l[0] != testRelease+"*" {
		t.Errorf("%v", l)
	}
	if files, _ := os.ReadDir(s.Dir); len(files) != 2 {
		t.Errorf("left: %v", files)
	}
}

func TestDefaultsFollowWhatIsThere(t *testing.T) {
	dir := t.TempDir()
	s := reopen(t, dir)
	add(t, s, bzImageOf("6.1.0"), api.KernelAdd{})
	add(t, s, bzImageOf("6.2.0"), api.KernelAdd{})
	add(t, s, imageOf("ARM\x64", "6.3.0"), api.KernelAdd{})
	add(t, s, umlOf("6.1.0"), api.KernelAdd{})
	check := func(what string, want ...string) {
		t.Helper()
		for _, s := range []*Store{s, reopen(t, dir)} {
			if d := cmp.Diff(want, names(s.List())); d != "" {
				t.Errorf("%s: %s", what, d)
			}
		}
	}
	check("the first of its kind", "uml-6.1.0*", "6.1.0*", "6.2.0", "6.3.0*")
	if err := s.SetDefault("6.2.0"); err != nil {
		t.Fatal(err)
	}
	check("chosen", "uml-6.1.0*", "6.1.0", "6.2.0*", "6.3.0*")
	add(t, s, bzImageOf("6.4.0"), api.KernelAdd{Default: true})
	check("added as such", "uml-6.1.0*", "6.1.0", "6.2.0", "6.4.0*", "6.3.0*")
	if err := s.Delete("6.4.0"); err != nil {
		t.Fatal(err)
	}
	check("after its deletion", "uml-6.1.0*", "6.1.0", "6.2.0*", "6.3.0*")
	if err := s.SetDefault("none"); !api.IsCode(err, api.CodeNotFound) {
		t.Error(err)
	}
}

func TestKernelIsFoundForItsKindOnly(t *testing.T) {
	s := newStore(t)
	for _, arch := range []string{"amd64", "arm64"} {
		command := "`cleave kernel fetch debian --kind pvm`"
		if arch != runtime.GOARCH {
			command = "`cleave kernel fetch debian --kind pvm --arch " + arch + "`"
		}
		if _, err := s.Get(api.KindPVM, arch, ""); !api.IsCode(err, api.CodeNotFound) || !strings.Contains(err.Error(), command) {
			t.Errorf("without any: %v", err)
		}
	}
	add(t, s, bzImageOf("6.1.0"), api.KernelAdd{})
	if k, err := s.Get(api.KindVM, "amd64", ""); err != nil || k.Name != "6.1.0" {
		t.Errorf("%v %v", k, err)
	}
	if _, err := s.Get(api.KindVM, "arm64", "6.1.0"); !api.IsCode(err, api.CodeInvalid) || !strings.Contains(err.Error(), "for kind vm on amd64") {
		t.Errorf("for another architecture: %v", err)
	}
	if _, err := s.Get(api.KindVM, "amd64", "6.9.0"); !api.IsCode(err, api.CodeNotFound) {
		t.Errorf("one that isn't there: %v", err)
	}
}

// What a crash or a broken disk leaves is cleared away or named, and nothing
// else suffers.
func TestDamageIsLeftOutAndCanBeReplaced(t *testing.T) {
	dir := t.TempDir()
	s := reopen(t, dir)
	for _, r := range []string{"1.0.0", "2.0.0", "3.0.0", "4.0.0"} {
		add(t, s, bzImageOf(r), api.KernelAdd{})
	}
	if err := os.Truncate(filepath.Join(s.Dir, "1.0.0", fileImage), 100); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(s.Dir, "2.0.0", fileRecord), []byte("{"))
	if err := os.Rename(filepath.Join(s.Dir, "3.0.0"), filepath.Join(s.Dir, "5.0.0")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(s.Dir, fileDefaults), []byte("garbage"))
	write(t, filepath.Join(s.Dir, temporary+"123", fileImage), []byte("half"))
	write(t, filepath.Join(s.Dir, "4.0.0", temporary+"123"), []byte("half"))

	s = reopen(t, dir)
	if d := cmp.Diff([]string{"4.0.0*"}, names(s.List())); d != "" {
		t.Error(d)
	}
	for _, p := range []string{temporary + "123", "4.0.0/" + temporary + "123"} {
		if exists(filepath.Join(s.Dir, p)) {
			t.Errorf("%s is still there", p)
		}
	}
	add(t, s, bzImageOf("1.0.0"), api.KernelAdd{})
	if err := s.Delete("2.0.0"); err != nil {
		t.Errorf("a damaged one can't be deleted: %v", err)
	}
	if err := s.Delete("2.0.0"); !api.IsCode(err, api.CodeNotFound) {
		t.Errorf("twice: %v", err)
	}
	if err := s.Delete(fileDefaults + "/../4.0.0"); !api.IsCode(err, api.CodeNotFound) {
		t.Errorf("by a path: %v", err)
	}
	if d := cmp.Diff([]string{"1.0.0", "4.0.0*"}, names(reopen(t, dir).List())); d != "" {
		t.Error(d)
	}
}

func TestFullDiskLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	small := filepath.Join(dir, "kernels")
	if err := os.Mkdir(small, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=96k"); err != nil {
		t.Skipf("a small disk needs root: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(small, 0); err != nil {
			t.Error(err)
		}
	})
	s := reopen(t, dir)
	k := add(t, s, bzImageOf("1.0.0"), api.KernelAdd{})
	large := file{"lib/modules/" + testRelease + "/kernel/large.bin", bytes.Repeat([]byte("x"), 200<<10)}
	modules := debOf("modules", append(modulesOf(testRelease), large)...)
	for what, b := range map[string][]byte{"kernel": bytes.Repeat([]byte("x"), 200<<10), "modules": modules} {
		if _, err := s.Import(t.Context(), sent(b), api.KernelAdd{}); !api.IsCode(err, api.CodeNoSpace) || !strings.Contains(err.Error(), "cleave kernel delete") {
			t.Errorf("%s: %v", what, err)
		}
	}
	agent := append(agentOf("amd64"), bytes.Repeat([]byte("x"), 200<<10)...)
	write(t, filepath.Join(dir, "agent.amd64"), agent)
	if _, err := s.Boot(t.Context(), api.KindVM, "amd64", ""); !api.IsCode(err, api.CodeNoSpace) {
		t.Errorf("initramfs: %v", err)
	}
	for _, d := range []string{s.Dir, filepath.Join(s.Dir, k.Name)} {
		if left, _ := filepath.Glob(filepath.Join(d, temporary+"*")); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
	if d := cmp.Diff([]string{"1.0.0*"}, names(reopen(t, dir).List())); d != "" {
		t.Error(d)
	}
}

func TestCancelledImportLeavesNothing(t *testing.T) {
	s := newStore(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Import(ctx, sent(kernelDeb(testRelease)), api.KernelAdd{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if left, _ := os.ReadDir(s.Dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestRunningKernelsFilesAreFound(t *testing.T) {
	root := t.TempDir()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	if _, _, err := runningKernel(root); !api.IsCode(err, api.CodeNotFound) || !strings.Contains(err.Error(), "/boot/vmlinuz-"+release) {
		t.Errorf("without files: %v", err)
	}
	image := write(t, filepath.Join(root, "lib/modules", release, "vmlinuz"), nil)
	if got, modules, err := runningKernel(root); got != image || modules != filepath.Dir(image) || err != nil {
		t.Errorf("%s %s %v", got, modules, err)
	}
	image = write(t, filepath.Join(root, "boot/vmlinuz-"+release), nil)
	if got, _, err := runningKernel(root); got != image || err != nil {
		t.Errorf("%s %v", got, err)
	}
}
