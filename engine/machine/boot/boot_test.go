package boot_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// hangGuard is for machines that never end: emulation on a busy host is slow.
const hangGuard = 4 * time.Minute

// fixture is what all tests boot: made once.
type fixture struct {
	dir     string
	agent   string // cleave-agent
	image   string // EROFS with busybox
	root    string // an empty ext4, to be copied
	initrd  string
	modules []string
	err     error
}

const umlProgram = "/usr/bin/linux.uml"

// sharedDir is the fixture's, if it was made.
var sharedDir string

var shared = sync.OnceValue(func() *fixture {
	f := &fixture{}
	f.err = f.make()
	return f
})

func TestMain(m *testing.M) {
	code := m.Run()
	if sharedDir != "" {
		os.RemoveAll(sharedDir)
	}
	os.Exit(code)
}

// need returns the fixture, or skips where the emulator isn't installed.
func need(t testing.TB) *fixture {
	t.Helper()
	if testing.Short() {
		t.Skip("boots machines")
	}
	for _, p := range []string{umlProgram, "mkfs.ext4", "mkfs.erofs", "busybox"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("%v (Debian: user-mode-linux e2fsprogs erofs-utils busybox-static)", err)
		}
	}
	f := shared()
	if f.err != nil {
		t.Fatal(f.err)
	}
	return f
}

func (f *fixture) make() (err error) {
	if f.dir, err = os.MkdirTemp("", "boot-"); err != nil {
		return err
	}
	sharedDir = f.dir
	f.agent = filepath.Join(f.dir, "cleave-agent")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", f.agent, "github.com/cleave-project/cleave/cmd/cleave-agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the agent: %w: %s", err, out)
	}
	if f.modules, err = umlModules("overlay", "erofs", "ipv6"); err != nil {
		return err
	}
	f.initrd = filepath.Join(f.dir, "initrd")
	if err := f.initramfs(f.initrd, f.modules); err != nil {
		return err
	}
	tree := filepath.Join(f.dir, "tree")
	if err := busyboxTree(tree); err != nil {
		return err
	}
	f.image = filepath.Join(f.dir, "image")
	if err := command("mkfs.erofs", "--quiet", f.image, tree); err != nil {
		if err := command("mkfs.erofs", f.image, tree); err != nil {
			return err
		}
	}
	f.root = filepath.Join(f.dir, "root")
	return ext4(f.root, 32<<20)
}

func command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return nil
}

func ext4(file string, size int64) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	if err := f.Truncate(size); err != nil {
		return err
	}
	f.Close()
	return command("mkfs.ext4", "-q", "-F", file)
}

// busyboxTree is a small root file system with an init of its own.
func busyboxTree(root string) error {
	for _, d := range []string{"bin", "sbin", "etc", "dev", "proc", "sys", "tmp", "root"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	exe, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	b, err := os.ReadFile(exe)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(root, "bin/busybox"), b, 0o755); err != nil {
		return err
	}
	list, err := exec.Command(exe, "--list").Output()
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(string(list)) {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil && name != "busybox" {
			return err
		}
	}
	for name, content := range map[string]string{
		"etc/passwd":  "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
		"etc/group":   "root:x:0:\nnogroup:x:65534:\n",
		"etc/hosts":   "127.0.0.1 of-the-image\n",
		"etc/inittab": "::sysinit:/bin/echo sysinit\nttyS0::respawn:/bin/sleep 1000\n::shutdown:/bin/echo shutdown\n",
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	return os.Symlink("../bin/busybox", filepath.Join(root, "sbin/init"))
}

// umlModules are the files of modules and those they need, in the order in
// which they load.
func umlModules(names ...string) ([]string, error) {
	lists, _ := filepath.Glob("/usr/lib/uml/modules/*/modules.dep")
	if len(lists) == 0 {
		return nil, fmt.Errorf("no modules of User Mode Linux are installed")
	}
	dir := filepath.Dir(lists[0])
	b, err := os.ReadFile(lists[0])
	if err != nil {
		return nil, err
	}
	var files []string
	for _, name := range names {
		for line := range strings.Lines(string(b)) {
			file, needs, _ := strings.Cut(strings.TrimSpace(line), ":")
			if filepath.Base(file) != name+".ko" {
				continue
			}
			for _, f := range slices.Backward(append([]string{file}, strings.Fields(needs)...)) {
				if f = filepath.Join(dir, f); !slices.Contains(files, f) {
					files = append(files, f)
				}
			}
		}
	}
	return files, nil
}

// cpio is an archive in the format that the kernel unpacks (Linux,
// Documentation/driver-api/early-userspace/buffer-format.rst).
type cpio struct {
	buf   bytes.Buffer
	inode int
}

func (c *cpio) add(name string, mode, major, minor int, content []byte) {
	c.inode++
	fmt.Fprintf(&c.buf, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		c.inode, mode, 0, 0, 1, 0, len(content), 0, 0, major, minor, len(name)+1, 0, name)
	c.align()
	c.buf.Write(content)
	c.align()
}

func (c *cpio) align() { c.buf.Write(make([]byte, -c.buf.Len()&3)) }

func (c *cpio) write(file string) error {
	c.add("TRAILER!!!", 0, 0, 0, nil)
	return os.WriteFile(file, c.buf.Bytes(), 0o644)
}

// initramfs writes one with these modules.
func (f *fixture) initramfs(file string, modules []string) error {
	agent, err := os.ReadFile(f.agent)
	if err != nil {
		return err
	}
	var c cpio
	c.add("dev", 0o40755, 0, 0, nil)
	c.add("dev/console", 0o20600, 5, 1, nil)
	c.add("init", 0o100755, 0, 0, agent)
	c.add("modules", 0o40755, 0, 0, nil)
	var order strings.Builder
	for _, m := range modules {
		order.WriteString(filepath.Base(m) + "\n")
		if content, err := os.ReadFile(m); err == nil { // a missing one is a test's
			c.add("modules/"+filepath.Base(m), 0o100644, 0, 0, content)
		}
	}
	c.add("modules/order", 0o100644, 0, 0, []byte(order.String()))
	return c.write(file)
}
