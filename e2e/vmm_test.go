package e2e

import (
	"bytes"
	"context"
	_ "embed"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/lab"
)

//go:embed testdata/monitor-host.sh
var monitorHost string

//go:embed testdata/monitor-guest.sh
var monitorGuest []byte

// monitorShows is what is to be seen: of the guests, then of the host.
var monitorShows = []string{
	"guest: 1 CPUs, clock kvm-clock", "guest: 2 CPUs, clock kvm-clock",
	"host: reset and power-off", "host: network", "host: jail", "host: disk plugged in", "host: disk let go of",
	"host: snapshot of a running guest", "host: snapshot of changes", "host: goes on", "host: power button",
	"host: changes are known after a restart", "host: changes aren't known after a kill",
	"host: clone one", "host: clone two", "host: clone three", "host: memory was brought",
}

// One of them: Debian 12's kernel doesn't know of clones, Debian 13's does
// (CLEAVE_TEST_KERNEL).
var clonesShow = []string{"host: a kernel that doesn't know of clones", "host: clones have random numbers of their own"}

// TestMonitorRunsAStockKernel has our monitor, started by hand, run a
// distribution's kernel in a host of the lab: what guests, disks, ports and
// snapshots do there.
func TestMonitorRunsAStockKernel(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a host under emulation")
	}
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		t.Skipf("needs a program: %v", err)
	}
	lab.Again(t, monitorRunsAStockKernel)
}

func monitorRunsAStockKernel(t testing.TB) {
	bin := func(name string) string { return filepath.Join("../bin", name) }
	busybox, err := os.ReadFile(bin("busybox"))
	if err != nil {
		t.Fatalf("no binaries: %v (make build)", err)
	}
	kernel, initrd := lab.Guest(t, map[string][]byte{"init": monitorGuest, "bin/busybox": busybox})
	disk := filepath.Join(t.TempDir(), "disk")
	if out, err := exec.Command("mkfs.ext4", "-q", disk, "32M").CombinedOutput(); err != nil {
		t.Fatalf("make a disk: %v: %s", err, out)
	}
	begin := time.Now()
	h := lab.Hosts(t, 1, lab.KVM, lab.CPUs(2), lab.Memory(2<<30),
		lab.File("cleave-vmm", bin("cleave-vmm")), lab.File("kernel", kernel), lab.File("initrd", initrd), lab.File("disk", disk))[0]
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	var said bytes.Buffer
	out := io.Writer(&said)
	if testing.Verbose() {
		out = io.MultiWriter(&said, os.Stdout)
	}
	script := api.ExecRequest{Command: []string{"sh", "-c", monitorHost}}
	status, err := h.Exec(ctx, lab.Command{ExecRequest: script, Stdout: out})
	if err != nil || status != 0 {
		t.Fatalf("status %d, %v:\n%s", status, err, tail(said.Bytes(), 8000))
	}
	for _, want := range monitorShows {
		if !strings.Contains(said.String(), want) {
			t.Errorf("no %q", want)
		}
	}
	if !slices.ContainsFunc(clonesShow, func(s string) bool { return strings.Contains(said.String(), s) }) {
		t.Error("clones have the same random numbers")
	}
	if t.Failed() {
		t.Logf("%s", tail(said.Bytes(), 20000))
	}
	t.Logf("%s with the boot", time.Since(begin).Round(time.Second))
}
