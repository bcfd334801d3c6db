package e2e

import (
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/lab"
)

// TestVirtualMachineOnAHostWithKVM runs a virtual machine as users do on a
// host where KVM is usable and QEMU isn't installed.
func TestVirtualMachineOnAHostWithKVM(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a host under emulation")
	}
	lab.Again(t, virtualMachineOnAHostWithKVM)
}

func virtualMachineOnAHostWithKVM(t testing.TB) {
	// The host's own kernel is that of its guests.
	kernel, _ := lab.Guest(t, nil)
	h := lab.Hosts(t, 1, lab.KVM, lab.CPUs(2), lab.Memory(2<<30), lab.File("kernel", kernel))[0]
	lab.Run(t, h, TestVirtualMachineIsTheMonitorsInside)
}

// TestVirtualMachineIsTheMonitorsInside is its half in the host, where the
// built programs are installed.
func TestVirtualMachineIsTheMonitorsInside(t *testing.T) {
	lab.Inside(t)
	h := newHost(t)
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	h.do("kernel", "add", "/lab/kernel", "--modules", "/lib/modules/"+release)
	h.do("launch", "base", "n", "--kind", "vm")
	in := h.show("n")
	if in.Status.Engine != "vmm" || in.Status.Accel != "kvm" {
		t.Errorf("engine %q, %q", in.Status.Engine, in.Status.Accel)
	}
	if out := h.do("show", "n"); !regexp.MustCompile(`(?m)^ *Engine +vmm$`).MatchString(out) {
		t.Errorf("show says:\n%s", out)
	}
	if out := strings.TrimSpace(h.do("exec", "n", "--", "uname", "-r")); out != release {
		t.Errorf("the guest's kernel is %q, want %q", out, release)
	}
	if r := h.try("exec", "n", "--", "sh", "-c", "exit 7"); r.code != 7 {
		t.Errorf("status %d, %s", r.code, r.err)
	}
	h.refused("(?i)no QEMU|qemu-system", "launch", "base", "other", "--kind", "vm", "--engine", "qemu")
	if names := h.names(); !slices.Equal(names, []string{"n"}) {
		t.Errorf("after a launch that was refused there are %v", names)
	}

	h.do("stop", "n")
	if in = h.show("n"); in.Status.Phase != "stopped" {
		t.Errorf("after a stop it is %s", in.Status.Phase)
	}
	if left := machinesLeft(h); len(left) > 0 {
		t.Errorf("a guest that was stopped has %v", left)
	}
	h.do("delete", "n")
	if left := machinesLeft(h); len(left) > 0 || len(h.names()) > 0 {
		t.Errorf("a guest that was deleted has left %v, there are %v", left, h.names())
	}
}

// machinesLeft is what there is of guests that run: monitors, ports, groups
// and runtime directories.
func machinesLeft(h *host) []string {
	left := slices.DeleteFunc(h.inventory(), func(s string) bool { return !strings.Contains(s, "cleave-vmm") })
	for _, id := range h.instances() {
		for _, pattern := range []string{"/sys/class/net/c" + id + "n*", "/sys/fs/cgroup/cleave*/*" + id + "*", filepath.Join(h.run, "vmm", id)} {
			found, _ := filepath.Glob(pattern)
			left = append(left, found...)
		}
	}
	return left
}
