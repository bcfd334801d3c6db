package e2e

import (
	"bytes"
	"context"
	_ "embed"
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

//go:embed testdata/monitor-host.sh
var monitorHost string

//go:embed testdata/monitor-guest.sh
var monitorGuest string

// monitorModules are what the guests load.
var monitorModules = []string{"virtio_pci", "virtio_blk", "ext4", "virtio_net", "virtio-rng", "button", "evdev"}

// monitorShows is what is to be seen: of the guests, then of the host.
var monitorShows = []string{
	"guest: 1 CPUs, clock kvm-clock", "guest: 2 CPUs, clock kvm-clock",
	"host: reset and power-off", "host: network", "host: jail", "host: disk plugged in", "host: disk let go of",
	"host: snapshot of a running guest", "host: snapshot of changes", "host: goes on", "host: power button",
	"host: clone one", "host: clone two", "host: clones have random numbers of their own",
}

// TestMonitorRunsAStockKernel has our monitor run a distribution's kernel on a
// host with KVM of its own, an emulated one, since there may be no other: what
// guests, disks, ports and snapshots do there.
func TestMonitorRunsAStockKernel(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a host under emulation")
	}
	spec := monitorSpec(t)
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
	for _, want := range monitorShows {
		if !strings.Contains(results.String(), want) {
			t.Errorf("no %q", want)
		}
	}
	if t.Failed() {
		t.Logf("%s", tail(results.Bytes(), 20000))
	}
	t.Logf("%s with the boot", time.Since(begin).Round(time.Second))
}

// monitorSpec is the host, with what its guests are made of.
func monitorSpec(t *testing.T) *stockhost.Spec {
	t.Helper()
	for _, name := range []string{stockhost.Emulator, "mkfs.ext4"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("needs a program: %v", err)
		}
	}
	bin, err := filepath.Abs("../bin")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	spec := &stockhost.Spec{Busybox: filepath.Join(bin, "busybox"), Append: "kvm-amd.nested=0", Command: monitorHost}
	if spec.Kernel, err = stockhost.FetchKernel(t.Context(), kernelCache, kernelPackage, spec.Busybox); err != nil {
		t.Skipf("needs a stock kernel: %v", err)
	}
	disk := filepath.Join(dir, "disk")
	if out, err := exec.Command("mkfs.ext4", "-q", disk, "32M").CombinedOutput(); err != nil {
		t.Fatalf("make a disk: %v: %s", err, out)
	}
	spec.Files = map[string]string{
		"vmm/cleave-vmm": filepath.Join(bin, "cleave-vmm"), "vmm/kernel": spec.Kernel.Image,
		"vmm/initrd": monitorInitrd(t, dir, spec), "vmm/disk": disk,
	}
	return spec
}

// monitorInitrd makes the guests' initramfs.
func monitorInitrd(t *testing.T, dir string, spec *stockhost.Spec) string {
	t.Helper()
	files, order, err := spec.Kernel.Files(monitorModules...)
	if err != nil {
		t.Fatal(err)
	}
	var load strings.Builder
	for _, m := range order {
		fmt.Fprintf(&load, "insmod /%s || echo 'guest: no module %s'\n", m, m)
	}
	if files["bin/busybox"], err = os.ReadFile(spec.Busybox); err != nil {
		t.Fatal(err)
	}
	files["init"] = []byte(strings.Replace(monitorGuest, "MODULES\n", load.String(), 1))
	var b bytes.Buffer
	if err := stockhost.Archive(&b, files); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "initrd")
	if err := os.WriteFile(name, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func monitorRun(t *testing.T, spec *stockhost.Spec, results *bytes.Buffer) (int, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	results.Reset()
	spec.Output = results
	if testing.Verbose() {
		spec.Output = io.MultiWriter(results, os.Stdout)
	}
	return stockhost.Run(ctx, t.TempDir(), spec)
}
