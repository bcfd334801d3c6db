package e2e

import (
	_ "embed"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/cleave-project/cleave/lab"
)

//go:embed testdata/tools-guest.sh
var toolsGuest []byte

// tools are programs by which many try machines.
var tools = []string{"fio", "iperf3", "stress-ng"}

// TestStockToolsInAGuest has a guest of our monitor try its disk by fio, which
// reads what it wrote and checks it, its port by iperf3, in both directions, and
// its processors and memory by stress-ng, which checks what it works out.
func TestStockToolsInAGuest(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a host under emulation")
	}
	for _, name := range append(tools, "mkfs.ext4") {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("needs a program: %v", err)
		}
	}
	lab.Again(t, stockTools)
}

func stockTools(t testing.TB) {
	busybox, err := os.ReadFile("../bin/busybox")
	if err != nil {
		t.Fatalf("no binaries: %v (make build)", err)
	}
	kernel, initrd := lab.Guest(t, map[string][]byte{"init": toolsGuest, "bin/busybox": busybox})
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	for _, name := range tools {
		copyProgram(t, tree, name)
	}
	image := filepath.Join(dir, "tools")
	if out, err := exec.Command("mkfs.ext4", "-q", "-d", tree, image, "160M").CombinedOutput(); err != nil {
		t.Fatalf("make a disk of tools: %v: %s", err, out)
	}
	h := lab.Hosts(t, 1, lab.KVM, lab.CPUs(2), lab.Memory(1<<30), lab.File("cleave-vmm", "../bin/cleave-vmm"),
		lab.File("kernel", kernel), lab.File("initrd", initrd), lab.File("tools", image))[0]
	lab.Run(t, h, TestStockToolsInside)
}

var library = regexp.MustCompile(`(?m)^\s*(?:\S+ => )?(/\S+) \(0x`)

// copyProgram adds a program, with the libraries that it needs.
func copyProgram(t testing.TB, tree, name string) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("ldd", path).Output()
	if err != nil {
		t.Fatalf("find the libraries of %s: %v", path, err)
	}
	files := map[string]string{filepath.Join("bin", name): path}
	for _, m := range library.FindAllStringSubmatch(string(out), -1) {
		files[filepath.Join("lib", filepath.Base(m[1]))] = m[1]
	}
	for to, from := range files {
		b, err := os.ReadFile(from)
		to = filepath.Join(tree, to)
		if err := errors.Join(err, os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, b, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
}

// lost is how the emulation of a host's processor loses guests (docs/lab.md),
// which is no fault of theirs: they are run once more.
const lost = "whose state KVM doesn't keep"

// TestStockToolsInside is the half in the host.
func TestStockToolsInside(t *testing.T) {
	lab.Inside(t)
	dir := t.TempDir()
	runInHost(t, "modprobe", "-a", "tun", "loop")
	serve := filepath.Join(dir, "tools")
	if err := os.Mkdir(serve, 0o700); err != nil {
		t.Fatal(err)
	}
	runInHost(t, "mount", "-o", "loop,ro", "/lab/tools", serve)
	defer runInHost(t, "umount", serve)
	var out string
	for range 3 {
		var err error
		if out, err = runTools(t, dir, serve); err == nil || !strings.Contains(out, lost) {
			if err != nil {
				t.Fatalf("%v:\n%s", err, out)
			}
			break
		}
		t.Log("the emulation has lost the guest: once more")
	}
	for name, times := range map[string]int{"fio": 1, "iperf3": 2, "stress-ng": 1} {
		if n := strings.Count(out, "guest: "+name+" ends with 0"); n != times {
			t.Errorf("%s went well %d times of %d", name, n, times)
		}
	}
	if t.Failed() {
		t.Log(out)
	}
}

// runTools runs the guest to its end, and is what it said.
func runTools(t *testing.T, dir, serve string) (string, error) {
	t.Helper()
	disk := filepath.Join(dir, "disk")
	if err := errors.Join(os.WriteFile(disk, nil, 0o600), os.Truncate(disk, 64<<20)); err != nil {
		t.Fatal(err)
	}
	guest := exec.CommandContext(t.Context(), "/lab/cleave-vmm", "--kernel", "/lab/kernel", "--initrd", "/lab/initrd",
		"--cpus", "2", "--memory", "256MiB", "--disk", disk+",queues=2", "--disk", "/lab/tools,readonly", "--net", "tools0",
		"--command", "console=ttyS0 quiet panic=-1")
	var said transcript
	guest.Stdout, guest.Stderr = &said, &said
	if err := guest.Start(); err != nil {
		t.Fatal(err)
	}
	script := `until ip link set tools0 up 2> /dev/null; do sleep 0.1; done; ip addr add 10.99.0.1/24 dev tools0
exec $0/lib/ld-linux-x86-64.so.2 --library-path $0/lib $0/bin/iperf3 -s`
	server := exec.CommandContext(t.Context(), "sh", "-c", script, serve)
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	err := guest.Wait()
	_ = server.Process.Kill()
	_ = server.Wait()
	return said.String(), err
}

// transcript keeps what is said, and says it on, which tells the outside that
// something goes on.
type transcript struct{ strings.Builder }

func (w *transcript) Write(p []byte) (int, error) {
	_, _ = os.Stdout.Write(p)
	return w.Builder.Write(p)
}
