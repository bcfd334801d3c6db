package e2e

import (
	"strings"
	"testing"
)

// TestDevicesOfGuestsThatRun plugs a volume and ports into virtual machines
// and a container, from one to the other, over the death of the daemon and
// starts of the guests.
func TestDevicesOfGuestsThatRun(t *testing.T) {
	h := newWalls(t)
	for _, name := range []string{"a", "b"} {
		h.do("launch", "base", name, "--kind", "vm", "--", "sh", "-c", "trap exit TERM; while :; do sleep 1; done")
	}
	h.do("launch", "base", "c", "--", "sleep", "100000")
	h.do("network", "create", "back")
	h.do("volume", "create", "data", "--type", "disk", "--size", "64MiB")

	h.do("volume", "attach", "data", "a", "/srv/data")
	h.do("exec", "a", "--", "sh", "-c", "echo written in a >/srv/data/file")
	h.refused("a has it", "volume", "attach", "data", "b", "/srv/data")
	h.refused("has volume .data. at /srv/data already", "volume", "attach", "data", "a", "/srv/data")
	h.refused("has no volume root", "volume", "detach", "root", "a")
	for _, name := range []string{"a", "b", "c"} {
		h.do("network", "attach", "back", name, "--name", "lan1")
	}
	over := func() {
		t.Helper()
		for _, pair := range [][2]string{{"a", "b"}, {"b", "c"}, {"c", "a"}} {
			addr := backAddress(h, pair[1])
			eventually(t, pair[0]+" reaches "+pair[1], func() bool {
				return h.try("exec", pair[0], "--", "ping", "-c1", "-W5", addr).code == 0
			})
			if out := h.do("exec", pair[0], "--", "ip", "route", "get", addr); !strings.Contains(out, "lan1") {
				t.Errorf("%s goes to %s by %s", pair[0], pair[1], out)
			}
			if out := h.do("exec", pair[0], "--", "nslookup", pair[1]); !strings.Contains(out, "10.") {
				t.Errorf("%s in %s: %s", pair[1], pair[0], out)
			}
		}
	}
	over()
	h.kill()
	h.start()
	over()
	if out := h.do("exec", "a", "--", "cat", "/srv/data/file"); out != "written in a\n" {
		t.Errorf("after the daemon's death the volume has %q", out)
	}

	h.do("exec", "a", "--", "sh", "-c", "(cd /srv/data && exec sleep 1000) >/dev/null 2>&1 & echo $! >/tmp/user")
	h.refused("in use in the guest", "volume", "detach", "data", "a")
	h.do("exec", "a", "--", "sh", "-c", "kill $(cat /tmp/user); sleep 0.5")
	h.do("volume", "detach", "data", "a")
	h.do("volume", "attach", "data", "b", "/mnt/it", "--read-only")
	if r := h.try("exec", "b", "--", "sh", "-c", "cat /mnt/it/file; echo x >/mnt/it/x"); r.out != "written in a\n" || r.code == 0 {
		t.Errorf("the other guest reads %+v", r)
	}
	for _, name := range []string{"a", "c"} {
		h.do("network", "detach", "back", name)
		if out := h.do("exec", name, "--", "ip", "link"); strings.Contains(out, "lan1") {
			t.Errorf("%s still has %s", name, out)
		}
	}

	// What came while it ran is there from the start of the next time, and
	// stays then.
	h.do("restart", "b", "--timeout", "5s")
	if out := h.do("exec", "b", "--", "sh", "-c", "cat /mnt/it/file; ip -o addr show lan1"); !strings.Contains(out, "written in a") || !strings.Contains(out, backAddress(h, "b")) {
		t.Errorf("started again it has %s", out)
	}
	if r := h.try("volume", "detach", "data", "b"); r.code != 0 || !strings.Contains(r.err, "next start: volumes./mnt/it data:ro -> none (it was there at the start") {
		t.Errorf("%+v", r)
	}
	h.refused("b has it", "volume", "attach", "data", "a", "/srv/data")
	if r := h.try("volume", "attach", "/tmp", "c", "/host"); r.code != 0 || !strings.Contains(r.err, "next start: volumes./host none -> /tmp (nothing in a running container has the right to mount)") {
		t.Errorf("%+v", r)
	}
}

// backAddress is an instance's address on the network back.
func backAddress(h *host, name string) string {
	for _, p := range h.show(name).Status.NICs {
		if p.Network == "back" {
			addr, _, _ := strings.Cut(p.IPv4, "/")
			return addr
		}
	}
	h.t.Fatalf("%s has no port on the network", name)
	return ""
}
