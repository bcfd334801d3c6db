package container

import (
	"context"
	"errors"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/enginetest"
	"github.com/cleave-project/cleave/engine/internal/cgroup"
)

func TestNetworkIsConfiguredFromInside(t *testing.T) {
	e := newEngine(t)
	checkLeaks(t, e)
	link := "ct" + e.opts.Scope[1:7] + "n0"
	t.Cleanup(func() { exec.Command("ip", "link", "del", link).Run() }) // gone with the guest
	spec := guestSpec(t, `ip -o addr show; ip route; ip -6 route; cat /proc/sys/net/ipv6/conf/eth0/accept_ra; cat /sys/class/net/eth0/mtu`)
	spec.NICs = []engine.NIC{{
		Name: "eth0", MTU: 1400, IPv4: netip.MustParsePrefix("10.231.7.2/24"), IPv6: netip.MustParsePrefix("fd31:7::2/64"),
		Gateway4: netip.MustParseAddr("10.231.7.1"), Gateway6: netip.MustParseAddr("fe80::1"),
	}}
	spec.AttachNet = func(_ context.Context, pid int) error {
		output(t, "ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", strconv.Itoa(pid))
		output(t, "ip", "link", "set", link, "up")
		return nil
	}
	out, _ := runGuest(t, e, spec)
	for _, want := range []string{
		"lo    inet 127.0.0.1/8", "eth0    inet 10.231.7.2/24 brd 10.231.7.255", "inet6 fd31:7::2/64",
		"default via 10.231.7.1 dev eth0", "default via fe80::1 dev eth0", "\n0\n1400\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %s", want, out)
		}
	}
	if strings.Contains(out, "tentative") {
		t.Errorf("an address is tentative: %s", out)
	}
}

func TestPortsComeAndGoWhileAGuestRuns(t *testing.T) {
	e := newEngine(t)
	checkLeaks(t, e)
	link := "ct" + e.opts.Scope[1:7] + "n1"
	t.Cleanup(func() { exec.Command("ip", "link", "del", link).Run() })
	spec := guestSpec(t, "exec sleep 1000")
	g := enginetest.Start(t, e, spec)
	in := func(script string) string {
		return output(t, "nsenter", "-t", strconv.Itoa(g.PID), "-n", "sh", "-c", script)
	}
	attach := func(_ context.Context, pid int) error {
		if pid != g.PID {
			t.Errorf("attached to process %d, the guest's is %d", pid, g.PID)
		}
		output(t, "ip", "link", "add", link, "type", "veth", "peer", "name", "eth1", "netns", strconv.Itoa(pid))
		output(t, "ip", "link", "set", link, "up")
		return nil
	}
	n := engine.NIC{
		Name: "eth1", MTU: 1400, IPv4: netip.MustParsePrefix("10.231.8.2/24"), IPv6: netip.MustParsePrefix("fd31:8::2/64"),
		Gateway4: netip.MustParseAddr("10.231.8.1"),
	}
	for range 2 {
		if err := e.AttachLink(t.Context(), spec.ID, n, attach); err != nil {
			t.Fatal(err)
		}
		out := in("ip -o addr show; ip route; cat /proc/sys/net/ipv6/conf/eth1/accept_ra; ip -o link")
		for _, want := range []string{"eth1    inet 10.231.8.2/24", "inet6 fd31:8::2/64", "default via 10.231.8.1 dev eth1", "\n0\n", "mtu 1400"} {
			if !strings.Contains(out, want) {
				t.Errorf("no %q in %s", want, out)
			}
		}
		if err := e.DetachLink(t.Context(), spec.ID, "eth1"); err != nil {
			t.Fatal(err)
		}
		if out := in("ip -o link"); strings.Contains(out, "eth1") {
			t.Errorf("it is still there: %s", out)
		}
	}
	if err := e.DetachLink(t.Context(), spec.ID, "eth1"); err != nil {
		t.Errorf("taking away what has gone: %v", err)
	}
	wrong := errors.New("no such wire")
	if err := e.AttachLink(t.Context(), spec.ID, n, func(context.Context, int) error { return wrong }); !errors.Is(err, wrong) {
		t.Errorf("error %v", err)
	}
	// What can't be configured is not left behind.
	n.IPv4, n.Gateway4 = netip.Prefix{}, netip.MustParseAddr("::1")
	if err := e.AttachLink(t.Context(), spec.ID, n, attach); err == nil {
		t.Error("a gateway of no use was taken")
	}
	if out := in("ip -o link"); strings.Contains(out, "eth1") {
		t.Errorf("it was left behind: %s", out)
	}
}

func TestStartNamesTheInterfaceThatIsMissing(t *testing.T) {
	e := newEngine(t)
	checkLeaks(t, e)
	spec := guestSpec(t, "true")
	spec.NICs = []engine.NIC{{Name: "eth7", IPv4: netip.MustParsePrefix("10.231.7.2/24")}}
	_, err := e.Start(t.Context(), spec)
	if err == nil || !strings.Contains(err.Error(), "eth7") {
		t.Errorf("error %v", err)
	}
}

func TestStartOfARunningGuestIsRefusedAndHarmless(t *testing.T) {
	e := newEngine(t)
	checkLeaks(t, e)
	spec := guestSpec(t, "exec sleep 1000")
	enginetest.Start(t, e, spec)
	if _, err := e.Start(t.Context(), spec); !api.IsCode(err, api.CodeConflict) {
		t.Errorf("error %v", err)
	}
	if out, code := inGuest(t, e, spec.ID, "echo", "alive"); code != 0 || out != "alive" {
		t.Errorf("exit %d, output %q", code, out)
	}
}

func TestStartClearsWhatADeadDaemonLeft(t *testing.T) {
	e := newEngine(t)
	checkLeaks(t, e)
	spec := guestSpec(t, "exit 3")
	l := &launch{e: e, spec: spec}
	if err := l.makePlace(); err != nil {
		t.Fatal(err)
	}
	l.close()
	if _, st := runGuest(t, e, spec); st.Code != 3 {
		t.Errorf("status %+v", st)
	}
}

func TestDiskRateLimitHolds(t *testing.T) {
	e := newEngine(t)
	checkLeaks(t, e)
	spec := guestSpec(t, `exec sleep 1000`)
	spec.Resources.DiskWrite = 2 * api.MiB
	if len(cgroup.BlockDevices(spec.Root.Dir)) == 0 {
		t.Skipf("%s is on no block device, which limits are for", spec.Root.Dir)
	}
	enginetest.Start(t, e, spec)
	begin := time.Now()
	out, code := inGuest(t, e, spec.ID, "dd", "if=/dev/zero", "of=/root/f", "bs=1M", "count=4", "oflag=direct")
	if took := time.Since(begin); code != 0 || took < 1500*time.Millisecond {
		t.Errorf("4 MiB at 2 MiB/s took %v, exit %d, output %q", took, code, out)
	}
}
