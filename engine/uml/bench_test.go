package uml

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
)

// BenchmarkLaunch is from a start to an agent that answers, beside bare
// linux.uml from its start to the end of an init that powers off.
func BenchmarkLaunch(b *testing.B) {
	e := newEngine(b)
	go func() { // ends with the engine
		for range e.Exits() {
			continue
		}
	}()
	root := b.TempDir()
	b.Run("engine", func(b *testing.B) {
		for b.Loop() {
			spec := benchSpec(root)
			if _, err := e.Start(b.Context(), spec); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			if err := e.Forget(context.Background(), spec.ID); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	})
	b.Run("bare", func(b *testing.B) {
		initrd := bareInitrd(b, "poweroff -f")
		for b.Loop() {
			if out, err := exec.CommandContext(b.Context(), shared.kernel.Image, bareArgs(b, initrd)...).CombinedOutput(); err != nil {
				b.Fatalf("%v: %s", err, out)
			}
		}
	})
}

func benchSpec(root string) *engine.Spec {
	return &engine.Spec{
		ID: "benchmarka", Name: "bench", Hostname: "bench", Image: image(), Root: engine.Root{Dir: root, Size: 64 * api.MiB},
		Proc:    engine.Process{Args: []string{"/bin/sleep", "1000"}, Env: []string{"PATH=/bin"}},
		UIDBase: 0x61000000, IDCount: 1 << 16, Machine: hardware(),
	}
}

func bareArgs(t testing.TB, initrd string) []string {
	return []string{
		fmt.Sprintf("mem=%dM", hardware().Memory/api.MiB), "initrd=" + initrd, "con=null", "con0=null", "ssl=null", "quiet",
		"uml_dir=" + t.TempDir(),
	}
}

// bareInitrd is an initramfs of busybox, whose init is an applet of it.
func bareInitrd(t testing.TB, init string) string {
	t.Helper()
	dir := t.TempDir()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip(err)
	}
	for name, content := range map[string]string{"busybox": string(busybox), "init": "#!/busybox sh\n/busybox " + init + "\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	out := filepath.Join(t.TempDir(), "initrd")
	c := exec.Command("/bin/busybox", "cpio", "-o", "-H", "newc", "-F", out)
	c.Dir, c.Stdin = dir, strings.NewReader("busybox\ninit\n")
	if b, err := c.CombinedOutput(); err != nil {
		t.Fatalf("cpio: %v: %s", err, b)
	}
	return out
}

// TestMonitorTakesLittleBesideTheGuestsMemory compares what the processes of
// a monitor have beside the file that is the guest's RAM with bare ones.
func TestMonitorTakesLittleBesideTheGuestsMemory(t *testing.T) {
	e := newEngine(t)
	g := e.start(t, e.spec(t, "sleep 1000"))
	ours := beside(t, g.pid())
	c := exec.Command(shared.kernel.Image, bareArgs(t, bareInitrd(t, "sleep 1000"))...)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	// It leads a group of its own, with the processes of its guest.
	t.Cleanup(func() { _ = syscall.Kill(-c.Process.Pid, syscall.SIGKILL); _ = c.Wait() })
	time.Sleep(4 * time.Second) // it says nothing by which to wait for it
	bare := beside(t, c.Process.Pid)
	t.Logf("beside its RAM: ours %s, bare %s", ours, bare)
	if ours > bare+5*api.MiB {
		t.Errorf("ours takes %s beside the guest's RAM, a bare one %s", ours, bare)
	}
}

// beside is what a process has resident, but for shared memory, which the
// guest's RAM is.
func beside(t *testing.T, pid int) (sum api.Bytes) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var kib api.Bytes
		for _, name := range []string{"RssAnon:", "RssFile:"} {
			if n, _ := fmt.Sscanf(line, name+" %d kB", &kib); n == 1 {
				sum += kib * api.KiB
			}
		}
	}
	return sum
}
