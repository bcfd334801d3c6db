package qemu

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/cleave-project/cleave/agent"
	"github.com/cleave-project/cleave/engine/enginetest"
)

// BenchmarkLaunch is from a Start to an agent that answers.
func BenchmarkLaunch(b *testing.B) {
	e := newEngine(b)
	var cpu time.Duration
	for b.Loop() {
		spec := imageSpec(b, "while :; do sleep 1000; done")
		enginetest.Start(b, e, spec)
		conn, err := e.Agent(b.Context(), spec.ID)
		if err != nil {
			b.Fatal(err)
		}
		c, err := agent.Dial(b.Context(), conn)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		st, err := e.Stats(b.Context(), spec.ID)
		if err != nil {
			b.Fatal(err)
		}
		cpu += time.Duration(st.CPUNanos)
		c.Close()
		if err := e.Clean(b.Context(), spec.ID); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric(cpu.Seconds()/float64(b.N), "cpu-s/op")
}

// BenchmarkBare is a boot of the same kernel by hand, to an init that powers
// off.
func BenchmarkBare(b *testing.B) {
	needQEMU(b)
	k := boot(b)
	initrd := bareInitrd(b, "reboot -f")
	var cpu time.Duration
	for b.Loop() {
		c := exec.Command("qemu-system-x86_64", "-M", "microvm", "-cpu", "max", "-m", "256", "-nodefaults", "-no-user-config", "-display", "none",
			"-no-reboot", "-serial", "null", "-kernel", k.Image, "-initrd", initrd, "-append", "console=ttyS0 quiet panic=-1 reboot=t tsc_early_khz=2000000")
		if out, err := c.CombinedOutput(); err != nil {
			b.Fatalf("%v: %s", err, out)
		}
		cpu += c.ProcessState.UserTime() + c.ProcessState.SystemTime()
	}
	b.ReportMetric(cpu.Seconds()/float64(b.N), "cpu-s/op")
}

// bareInitrd is an initramfs of busybox whose init is one of its commands.
func bareInitrd(b *testing.B, command string) string {
	root := filepath.Join(b.TempDir(), "root")
	if err := enginetest.BusyboxRoot(root); err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "init"), []byte("#!/bin/busybox sh\nexec /bin/busybox "+command+"\n"), 0o755); err != nil {
		b.Fatal(err)
	}
	c := exec.Command("/bin/sh", "-c", `find . | /bin/busybox cpio -o -H newc > ../initrd`)
	c.Dir = root
	if out, err := c.CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	return filepath.Join(filepath.Dir(root), "initrd")
}
