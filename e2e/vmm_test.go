package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cleave-project/cleave/e2e/stockhost"
)

// guestInit is the first and only process of the guests below.
const guestInit = `#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
echo "guest: $(/bin/busybox grep -c ^processor /proc/cpuinfo) CPUs, $(/bin/busybox awk '/MemTotal/ {print int($2/1024)}' /proc/meminfo) MiB"
echo "guest: clock $(/bin/busybox cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
/bin/busybox poweroff -f
`

// TestMonitorBootsAStockKernel has our monitor boot a distribution's kernel
// on a host with KVM of its own: an emulated one, since there may be no other.
func TestMonitorBootsAStockKernel(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a host under emulation")
	}
	if _, err := exec.LookPath(stockhost.Emulator); err != nil {
		t.Skipf("needs an emulator: %v (install qemu-system-x86)", err)
	}
	bin, err := filepath.Abs("../bin")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	spec := &stockhost.Spec{Busybox: filepath.Join(bin, "busybox"), Append: "kvm-amd.nested=0"}
	if spec.Kernel, err = stockhost.FetchKernel(t.Context(), kernelCache, kernelPackage, spec.Busybox); err != nil {
		t.Skipf("needs a stock kernel: %v", err)
	}
	busybox, err := os.ReadFile(spec.Busybox)
	if err != nil {
		t.Fatal(err)
	}
	var initrd bytes.Buffer
	if err := stockhost.Archive(&initrd, map[string][]byte{"bin/busybox": busybox, "init": []byte(guestInit)}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "initrd"), initrd.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	spec.Files = map[string]string{
		"vmm/cleave-vmm": filepath.Join(bin, "cleave-vmm"), "vmm/kernel": spec.Kernel.Image, "vmm/initrd": filepath.Join(dir, "initrd"),
	}
	spec.Command = "modprobe kvm_amd && ls -l /dev/kvm; cd /vmm; failed=0\n"
	for _, cpus := range []int{1, 2} {
		spec.Command += fmt.Sprintf("timeout 120 ./cleave-vmm --kernel kernel --initrd initrd --memory 256MiB --cpus %d </dev/null --command 'console=ttyS0 quiet panic=-1' || failed=1\n", cpus)
	}
	spec.Command += "[ $failed = 0 ]"
	results := &bytes.Buffer{}
	begin := time.Now()
	status, err := monitorRun(t, spec, results)
	if errors.Is(err, stockhost.ErrNoStatus) {
		// An emulated machine may hang before its first process.
		t.Logf("once more after %s: %v", time.Since(begin), err)
		status, err = monitorRun(t, spec, results)
	}
	if err != nil || status != 0 {
		t.Fatalf("status %d, %v:\n%s", status, err, tail(results.Bytes(), 8000))
	}
	for _, want := range []string{"guest: 1 CPUs", "guest: 2 CPUs", "guest: clock kvm-clock"} {
		if !strings.Contains(results.String(), want) {
			t.Errorf("no %q in\n%s", want, tail(results.Bytes(), 8000))
		}
	}
	t.Logf("%s with the boot", time.Since(begin).Round(time.Second))
}

func monitorRun(t *testing.T, spec *stockhost.Spec, results *bytes.Buffer) (int, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	results.Reset()
	spec.Output = results
	if testing.Verbose() {
		spec.Output = io.MultiWriter(results, os.Stdout)
	}
	return stockhost.Run(ctx, t.TempDir(), spec)
}
