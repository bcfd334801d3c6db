package boot_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine/machine/vitals"
)

// What a machine can't boot with is said on the console and, where there is a
// control disk, there.
func TestBootThatFailsSaysWhy(t *testing.T) {
	garbage := func(name string) string {
		file := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(file, make([]byte, 1<<20), 0o644); err != nil {
			t.Fatal(err)
		}
		return file
	}
	for name, c := range map[string]struct {
		change func(g *guest)
		want   string
	}{
		"module that isn't there": {func(g *guest) {
			g.initrd = filepath.Join(g.dir, "initrd")
			if err := g.fix.initramfs(g.initrd, append([]string{"/nowhere/no-such.ko"}, g.fix.modules...)); err != nil {
				t.Fatal(err)
			}
		}, "module no-such.ko: no such file"},
		"module of another kernel": {func(g *guest) {
			g.initrd = filepath.Join(g.dir, "initrd")
			odd := filepath.Join(g.dir, "odd.ko")
			if err := os.WriteFile(odd, []byte("no module"), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := g.fix.initramfs(g.initrd, append([]string{odd}, g.fix.modules...)); err != nil {
				t.Fatal(err)
			}
		}, "module odd.ko"},
		"damaged image":      {func(g *guest) { g.image = garbage("image") }, `mount the disk "image"`},
		"damaged root":       {func(g *guest) { g.root = garbage("root") }, `mount the disk "root"`},
		"damaged volume":     {func(g *guest) { g.volume(garbage("volume")) }, `mount the disk "volume-0" for /data`},
		"sysctl without use": {func(g *guest) { g.boot.Sysctls = [][2]string{{"kernel/no_such", "1"}} }, "set sysctl kernel.no_such"},
		"interface that isn't there": {func(g *guest) {
			g.boot.NICs = []vitals.NIC{{Name: "eth0", MAC: "02:00:00:00:00:01"}}
		}, "find the interface eth0"},
		"file in the way of a volume": {func(g *guest) {
			volume := filepath.Join(g.dir, "volume")
			if err := ext4(volume, 16<<20); err != nil {
				t.Fatal(err)
			}
			g.volume(volume)
			g.boot.Mounts[0].Target = "/etc/passwd/below"
		}, "mount at /etc/passwd/below in the guest"},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t, "echo ran")
			c.change(g)
			got := g.start().end()
			if got.Phase != vitals.PhaseEnded || got.Exit.Code != 126 || got.Error == nil || !strings.Contains(got.Error.Message, c.want) {
				t.Errorf("status %+v, error %v", got, got.Error)
			}
			if s := g.console.String(); !strings.Contains(s, "cleave: ") || !strings.Contains(s, c.want) {
				t.Errorf("the console says %q", s)
			}
			if g.stdout.String() != "" {
				t.Error("the entry point ran")
			}
		})
	}
}

// volume gives the guest a disk, mounted at /data.
func (g *guest) volume(file string) {
	g.disks = []string{file}
	g.boot.Mounts = []vitals.Mount{{Disk: "volume-0", Target: "/data"}}
}

// Nothing can be noted then; the machine ends all the same, and the console
// has the reason.
func TestMachineWithADamagedControlDiskEnds(t *testing.T) {
	g := newGuest(t, "echo ran")
	if err := os.WriteFile(g.control, make([]byte, vitals.Size), 0o644); err != nil {
		t.Fatal(err)
	}
	g.run()
	<-g.ended
	if s := g.console.String(); !strings.Contains(s, "cleave: the control disk is damaged") || g.stdout.String() != "" {
		t.Errorf("the console says %q", s)
	}
}

// A panic resets the machine; what it did then would bring it down again.
func TestPanicOfAnApplicationsKernelEndsIt(t *testing.T) {
	g := newGuest(t, "echo before; sleep 1; echo c > /proc/sysrq-trigger; sleep 1000").start()
	<-g.ended
	// User Mode Linux ends where a machine is reset.
	s := g.status()
	if s.Phase != vitals.PhaseRunning || s.Boots != 1 {
		t.Errorf("after the panic: %+v", s)
	}
	g.run()
	s = g.end()
	want := api.ExitStatus{Code: -1, Reason: "panic"}
	if s.Phase != vitals.PhaseEnded || s.Boots != 2 || s.Exit != want || g.stdout.String() != "" {
		t.Errorf("after the reset: %+v, output %q", s, g.stdout.String())
	}
}

// A root disk that is full is the guest's trouble, but it boots.
func TestGuestWithAFullDiskBoots(t *testing.T) {
	g := newGuest(t, "cat /dev/zero > /big; mkdir /d; i=0; while echo > /d/$i; do i=$((i+1)); done 2>/dev/null; sync; echo full")
	g.start()
	if s := g.end(); s.Exit.Code != 0 || g.stdout.String() != "full\n" {
		t.Fatalf("status %+v, output %q, %q", s, g.stdout.String(), g.stderr.String())
	}
	g.boot.Process.Args[2] = "echo x > /etc/x || echo refused; cat /etc/hosts; rm /big; echo x > /etc/x && echo written"
	g.start()
	s := g.end()
	if got := g.stdout.String(); s.Exit.Code != 0 || got != "refused\n127.0.0.1 localhost guest\nwritten\n" {
		t.Errorf("status %+v, output %q\n%s\n%s", s, got, g.stderr.String(), g.console.String())
	}
}
