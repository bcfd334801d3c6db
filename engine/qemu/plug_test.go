package qemu

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/enginetest"
)

// run executes a script in a guest and returns its output.
func run(t testing.TB, e *Engine, id, script string) string {
	t.Helper()
	out, errs, code := enginetest.Exec(t, e, id, "/bin/sh", "-c", script)
	if code != 0 {
		t.Fatalf("%s: status %d\n%s%s", script, code, out, errs)
	}
	return out
}

// newTap is a tap device of its own.
func newTap(t *testing.T) *os.File {
	t.Helper()
	link := &netlink.Tuntap{
		LinkAttrs: netlink.LinkAttrs{Name: "clvt" + strings.ToLower(t.Name()[len(t.Name())-4:]) + string(rune('a'+serial.Add(1)%26))},
		Mode:      netlink.TUNTAP_MODE_TAP, Flags: unix.IFF_NO_PI | unix.IFF_VNET_HDR, NonPersist: true, Queues: 1,
	}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	return link.Fds[0]
}

func TestDevicesComeAndGoWhileAGuestRuns(t *testing.T) {
	e := newEngine(t)
	spec := imageSpec(t, "trap exit TERM; while :; do sleep 1; done")
	enginetest.Start(t, e, spec)
	ctx := t.Context()
	disk := engine.Disk{ID: "extra", Path: filepath.Join(t.TempDir(), "extra")}
	if err := os.WriteFile(disk.Path, bytes.Repeat([]byte("A"), 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	const find = `for d in /sys/block/vd*; do [ "$(cat $d/serial)" = extra ] && echo ${d##*/}; done; :`
	for range 2 { // what is taken away can come again
		if err := e.AttachDisk(ctx, spec.ID, disk); err != nil {
			t.Fatal(err)
		}
		if err := e.AttachDisk(ctx, spec.ID, disk); !api.IsCode(err, api.CodeExists) {
			t.Errorf("the same disk once more gives %v", err)
		}
		name := wait(t, func() string { return run(t, e, spec.ID, find) })
		if got := run(t, e, spec.ID, "echo B | dd of=/dev/"+name+" conv=fsync 2>/dev/null; head -c 4 /dev/"+name); got != "B\nAA" {
			t.Errorf("the disk holds %q", got)
		}
		if err := e.DetachDisk(ctx, spec.ID, disk.ID); err != nil {
			t.Fatal(err)
		}
		if out := run(t, e, spec.ID, find); out != "" {
			t.Errorf("the disk is still there: %q", out)
		}
	}
	if b, err := os.ReadFile(disk.Path); err != nil || string(b[:4]) != "B\nAA" {
		t.Errorf("the file holds %.4q, %v", b, err)
	}
	if err := e.DetachDisk(ctx, spec.ID, disk.ID); !api.IsCode(err, api.CodeNotFound) {
		t.Errorf("taking away what is not there gives %v", err)
	}
	if err := e.DetachDisk(ctx, spec.ID, "root"); !api.IsCode(err, api.CodeUnsupported) {
		t.Errorf("taking away the root gives %v", err)
	}
	if err := e.InsertMedium(ctx, spec.ID, disk.Path); !api.IsCode(err, api.CodeUnsupported) {
		t.Errorf("a medium without a drive gives %v", err)
	}
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	tap := newTap(t)
	err := e.AttachNIC(ctx, spec.ID, engine.NIC{Name: "eth7", MAC: mac}, tap)
	tap.Close()
	if err != nil {
		t.Fatal(err)
	}
	const seen = "grep -l 02:00:00:00:00:09 /sys/class/net/*/address; :"
	wait(t, func() string { return run(t, e, spec.ID, seen) })
	if err := e.DetachNIC(ctx, spec.ID, "eth7"); err != nil {
		t.Fatal(err)
	}
	if out := run(t, e, spec.ID, seen); out != "" {
		t.Errorf("the port is still there: %q", out)
	}
}

// wait asks until there is an answer.
func wait(t *testing.T, ask func() string) string {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if s := strings.TrimSpace(ask()); s != "" {
			return s
		}
	}
	t.Fatal("it doesn't come")
	return ""
}

func TestAGuestMountsDisksAndConfiguresPortsThatCome(t *testing.T) {
	e := newEngine(t)
	spec := imageSpec(t, "trap exit TERM; while :; do sleep 1; done")
	enginetest.Start(t, e, spec)
	ctx := t.Context()
	disk := engine.Disk{ID: "v-abcdefghij", Path: filepath.Join(t.TempDir(), "disk.img"), Size: 64 << 20, Target: "/mnt/data"}
	if err := e.AttachDisk(ctx, spec.ID, disk); err != nil {
		t.Fatal(err)
	}
	run(t, e, spec.ID, "echo hello >/mnt/data/file; (cd /mnt/data && exec sleep 1000) >/dev/null 2>&1 & echo $! >/tmp/user")
	err := e.DetachDisk(ctx, spec.ID, disk.ID)
	if !api.IsCode(err, api.CodeInUse) {
		t.Fatalf("taking away what is in use gives %v", err)
	}
	// Another device at the same time, at another port.
	if err := e.AttachDisk(ctx, spec.ID, engine.Disk{ID: "v-second", Path: filepath.Join(t.TempDir(), "disk.img"), Size: 64 << 20, Target: "/mnt/second"}); err != nil {
		t.Fatal(err)
	}
	run(t, e, spec.ID, "cp /mnt/data/file /mnt/second/ && sync")
	if err := e.DetachDisk(ctx, spec.ID, "v-second"); err != nil {
		t.Fatal(err)
	}
	if out := run(t, e, spec.ID, "cat /mnt/data/file; kill $(cat /tmp/user); wait; sleep 0.2"); out != "hello\n" {
		t.Errorf("after the refusal the file holds %q", out)
	}
	if err := e.DetachDisk(ctx, spec.ID, disk.ID); err != nil {
		t.Fatal(err)
	}
	if out := run(t, e, spec.ID, "ls -A /mnt/data"); out != "" {
		t.Errorf("the mount point holds %q", out)
	}
	disk.ReadOnly, disk.Target = true, "/other"
	if err := e.AttachDisk(ctx, spec.ID, disk); err != nil {
		t.Fatal(err)
	}
	if out := run(t, e, spec.ID, "cat /other/file; echo x >/other/y || echo refused"); out != "hello\nrefused\n" {
		t.Errorf("read-only, it gives %q", out)
	}
	if err := e.DetachDisk(ctx, spec.ID, disk.ID); err != nil {
		t.Fatal(err)
	}
	// What a guest can't mount is not left in its machine.
	disk.Target = "/etc/hostname"
	if err := e.AttachDisk(ctx, spec.ID, disk); err == nil {
		t.Error("a file was taken for a mount point")
	}
	if err := e.DetachDisk(ctx, spec.ID, disk.ID); !api.IsCode(err, api.CodeNotFound) {
		t.Errorf("it was left behind: %v", err)
	}

	tap := newTap(t)
	defer tap.Close()
	nic := engine.NIC{
		Name: "lan1", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 7}, MTU: 1400,
		IPv4: netip.MustParsePrefix("10.231.9.2/24"), Gateway4: netip.MustParseAddr("10.231.9.1"),
	}
	if err := e.AttachNIC(ctx, spec.ID, nic, tap); err != nil {
		t.Fatal(err)
	}
	out := run(t, e, spec.ID, "ip addr show lan1; ip route")
	for _, want := range []string{"inet 10.231.9.2/24", "mtu 1400", "default via 10.231.9.1 dev lan1"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %s", want, out)
		}
	}
	if err := e.DetachNIC(ctx, spec.ID, "lan1"); err != nil {
		t.Fatal(err)
	}
}
