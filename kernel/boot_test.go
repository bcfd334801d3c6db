package kernel

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
)

// hung is longer than any boot takes, on a busy host, too.
const hung = 5 * time.Minute

// TestRealKernelsBootTheirInitramfs boots Debian's kernels with an agent that
// loads its modules, mounts the disk of all modules, loads one more from it
// and says so.
func TestRealKernelsBootTheirInitramfs(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: downloads kernels and boots them")
	}
	onAmd64(t)
	for _, c := range []struct {
		kind    api.Kind
		program string
		args    func(Boot) []string
	}{
		{api.KindVM, "qemu-system-x86_64", microvm},
		{api.KindPVM, "", userMode},
	} {
		t.Run(string(c.kind), func(t *testing.T) {
			if _, err := exec.LookPath(c.program); c.program != "" && err != nil {
				t.Skipf("needs an emulator: %v (install qemu-system-x86)", err)
			}
			dir := t.TempDir()
			init := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, "agent.amd64"), "./testdata/init")
			init.Env = append(os.Environ(), "CGO_ENABLED=0")
			if out, err := init.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			s := reopen(t, dir)
			debian(t, s, api.KernelFetch{Kind: c.kind})
			b, err := s.Boot(t.Context(), c.kind, "amd64", "")
			if err != nil {
				t.Fatal(err)
			}
			program := c.program
			if program == "" {
				program = b.Image
			}
			ctx, cancel := context.WithTimeout(t.Context(), hung)
			defer cancel()
			cmd := exec.CommandContext(ctx, program, c.args(b)...)
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "TMPDIR="+dir)
			out, err := cmd.CombinedOutput()
			if !bytes.Contains(out, []byte("RELEASE "+b.Version)) || !bytes.Contains(out, []byte("ALL IS WELL")) {
				t.Errorf("%v:\n%s", err, out)
			}
		})
	}
}

// microvm is QEMU's command line. The kernel is told the frequency of its
// clock, which it can't find out by comparing where the host is busy.
func microvm(b Boot) []string {
	return []string{
		"-M", "microvm,pcie=on,acpi=on", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-accel", "tcg", "-cpu", "max", "-m", "256", "-serial", "stdio",
		"-kernel", b.Image, "-initrd", b.Initrd,
		"-append", "console=ttyS0 quiet panic=-1 8250.nr_uarts=1 no_timer_check tsc=reliable " + frequency(),
		"-drive", "id=modules,if=none,format=raw,readonly=on,file=" + b.Modules, "-device", "virtio-blk-pci,drive=modules",
	}
}

func frequency() string {
	cpu, _ := os.ReadFile("/proc/cpuinfo")
	m := regexp.MustCompile(`cpu MHz\s*: ([0-9.]+)`).FindSubmatch(cpu)
	if m == nil {
		return ""
	}
	mhz, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		return ""
	}
	return fmt.Sprintf("tsc_early_khz=%d", int(mhz*1000))
}

func userMode(b Boot) []string {
	return []string{"mem=128M", "initrd=" + b.Initrd, "ubd0r=" + b.Modules, "con=null", "con0=null,fd:1", "quiet", "panic=-1"}
}

func BenchmarkInitramfs(b *testing.B) {
	if runtime.GOARCH != "amd64" {
		b.Skipf("needs a host of amd64, as its modules are; this is %s", runtime.GOARCH)
	}
	dir := b.TempDir()
	s, err := Open(Options{Dir: filepath.Join(dir, "kernels"), Agent: func(string) (string, error) { return filepath.Join(dir, "agent"), nil }})
	if err != nil {
		b.Fatal(err)
	}
	agent := append(agentOf("amd64"), bytes.Repeat([]byte{1}, 4<<20)...)
	if err := os.WriteFile(filepath.Join(dir, "agent"), agent, 0o644); err != nil {
		b.Fatal(err)
	}
	k, err := s.Import(b.Context(), bytes.NewReader(kernelDeb(testRelease)), api.KernelAdd{})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		old, _ := filepath.Glob(filepath.Join(s.Dir, k.Name, "initramfs-*"))
		for _, p := range old {
			os.Remove(p)
		}
		if _, err := s.Boot(b.Context(), api.KindVM, "amd64", ""); err != nil {
			b.Fatal(err)
		}
	}
}
