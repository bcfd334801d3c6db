package e2e

import (
	"strings"
	"testing"

	"github.com/cleave-project/cleave/api"
)

// TestGuestsHaveTheirKernels boots guests by the host's kernels, which are
// kept as long as somebody needs them.
func TestGuestsHaveTheirKernels(t *testing.T) {
	h := newHost(t)
	h.refused("cleave kernel fetch debian --kind pvm", "launch", "base", "early", "--kind", "pvm")
	name := strings.TrimSpace(h.do("kernel", "fetch", "debian", "--kind", "pvm"))
	h.do("launch", "base", "g", "--kind", "pvm")
	release := strings.TrimSpace(h.do("exec", "g", "--", "uname", "-r"))
	if in := h.show("g"); in.Status.Kernel != name || "uml-"+release != name {
		t.Errorf("kernel %q, release %q, status %+v", name, release, in.Status)
	}
	// All modules are to be had, also by what the kernel loads by itself.
	h.do("exec", "g", "--", "modprobe", "nf_tables")
	h.do("exec", "g", "--", "ip", "link", "add", "pair0", "type", "veth", "peer", "name", "pair1")
	if mods := h.do("exec", "g", "--", "cat", "/proc/modules"); !strings.Contains(mods, "nf_tables ") || !strings.Contains(mods, "veth ") {
		t.Errorf("loaded are:\n%s", mods)
	}
	h.refused("default/g", "kernel", "delete", name)
	h.refused("not found", "set", "g", "kernel=other")
	h.do("delete", "g", "--force")
	h.do("kernel", "delete", name)
	if left := h.do("kernel", "list", "-o", "name"); left != "" {
		t.Errorf("left: %s", left)
	}
	foreign := h.do("kernel", "fetch", "debian", "--arch", "arm64")
	if list := h.do("kernel", "list", "-o", "csv", "--columns", "name,arch,default"); !strings.Contains(list, strings.TrimSpace(foreign)+",arm64,true") {
		t.Errorf("of another architecture: %s", list)
	}
	h.refused(string(api.KindPVM), "launch", "base", "late", "--kind", "pvm")
}
