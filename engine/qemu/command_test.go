package qemu

import (
	"flag"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/machine"
)

var update = flag.Bool("update", false, "write golden files")

// some stands for any file.
var some = func() *os.File {
	f, err := os.Open(os.DevNull)
	if err != nil {
		panic(err)
	}
	return f
}()

// plan is of a guest made of an image; change makes it another.
func plan(change func(*machine.Plan)) *machine.Plan {
	mac, _ := net.ParseMAC("02:00:00:00:00:01")
	p := &machine.Plan{
		Spec: &engine.Spec{
			Name: "web", Proc: engine.Process{Args: []string{"/bin/web"}},
			NICs:    []engine.NIC{{Name: "eth0", MAC: mac}},
			Machine: &engine.Machine{Arch: "amd64", CPUs: 1, Memory: 256 * api.MiB, Kernel: engine.Kernel{Image: "vmlinux", Initrd: "initrd", Args: "more=1"}},
		},
		Image: some, Root: some, Control: some, Taps: []*os.File{some},
	}
	if change != nil {
		change(p)
	}
	return p
}

func ownPlan(f engine.Firmware) *machine.Plan {
	return plan(func(p *machine.Plan) {
		p.Image, p.Control, p.Spec.System = nil, nil, true
		p.Spec.Machine.Kernel, p.Spec.Machine.Firmware, p.Spec.Machine.CPUs = engine.Kernel{}, f, 2
		p.Spec.Machine.Disks = []engine.Disk{{ID: "cdrom", CDROM: true}, {ID: "seed", ReadOnly: true}}
		p.Disks = []*os.File{nil, some}
	})
}

func files() given {
	return given{monitor: some, agent: some, end: some, kernel: some, initrd: some}
}

func TestCommandLines(t *testing.T) {
	amd64, arm64, riscv64 := archs[0], archs[1], archs[2]
	own := files()
	own.guest = some
	for _, c := range []struct {
		name string
		plan *machine.Plan
		host host
		file given
	}{
		{"image", plan(nil), host{program: "/usr/bin/qemu-system-x86_64", arch: amd64, accel: "tcg", tsc: 2000000}, files()},
		{"image-kvm", plan(func(p *machine.Plan) { p.Spec.Machine.CPUs = 4 }), host{program: "/usr/bin/qemu-system-x86_64", arch: amd64, accel: "kvm"}, files()},
		{"image-tty", plan(func(p *machine.Plan) { p.Proc.TTY = true }), host{program: "/usr/bin/qemu-system-x86_64", arch: amd64, accel: "tcg", tsc: 2000000}, files()},
		{"image-system", plan(func(p *machine.Plan) { p.Spec.System = true }), host{program: "/usr/bin/qemu-system-x86_64", arch: amd64, accel: "tcg", tsc: 2000000}, files()},
		{"image-disks", plan(func(p *machine.Plan) {
			p.Modules, p.Restore = some, some
			p.Mounts, p.Volumes = []engine.Mount{{Disk: true}, {Disk: true, ReadOnly: true}}, []*os.File{some, some}
			p.Spec.Machine.Disks, p.Disks = []engine.Disk{{ID: "data"}}, []*os.File{some}
			p.Spec.Name, p.Spec.NICs, p.Taps = "a,b", nil, nil
		}), host{program: "/usr/bin/qemu-system-x86_64", arch: amd64, accel: "tcg", tsc: 2000000}, files()},
		{"arm64", plan(func(p *machine.Plan) { p.Spec.Machine.Arch = "arm64" }), host{program: "/usr/bin/qemu-system-aarch64", arch: arm64, accel: "tcg"}, files()},
		{"riscv64", plan(func(p *machine.Plan) { p.Spec.Machine.Arch = "riscv64" }), host{program: "/usr/bin/qemu-system-riscv64", arch: riscv64, accel: "tcg"}, files()},
		{"bios", ownPlan(engine.Firmware{Type: "bios"}), host{program: "/usr/bin/qemu-system-x86_64", arch: amd64, accel: "tcg", firmware: &firmware{order: []string{"cdrom", "disk", "network"}, maxCPUs: 8}}, own},
		{"secure", ownPlan(engine.Firmware{Type: "uefi"}), host{program: "/usr/bin/qemu-system-x86_64", arch: amd64, accel: "kvm", firmware: &firmware{
			uefi: true, secure: true, code: some, vars: some, format: "raw", order: []string{"disk"},
			tpm: &tpm{ours: some, theirs: some, dir: "/state/tpm"},
		}}, own},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := newCommand(c.plan, c.host, c.file)
			got := strings.Join(cmd.Args, "\n") + "\n"
			if cmd.Beside != nil {
				got += "beside: " + strings.Join(cmd.Beside.Args, " ") + "\n"
			}
			golden := filepath.Join("testdata", c.name+".args")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestCommandLinesHoldWhatMustHold looks at what no golden file may lose.
func TestCommandLinesHoldWhatMustHold(t *testing.T) {
	for _, p := range []*machine.Plan{plan(nil), ownPlan(engine.Firmware{Type: "bios"})} {
		h := host{program: "/usr/bin/qemu-system-x86_64", arch: archs[0], accel: "tcg"}
		g := files()
		if p.Spec.Machine.Firmware.Type != "" {
			h.firmware, g.guest = &firmware{}, some
		}
		cmd := newCommand(p, h, g)
		all := strings.Join(cmd.Args, " ")
		for _, want := range []string{
			"-nodefaults", "-no-user-config", "-display none",
			"-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		} {
			if !strings.Contains(all, want) {
				t.Errorf("%q lacks", want)
			}
		}
		for _, no := range []string{"tcp", "telnet", " :0", "host=", "script=", "-netdev user"} {
			if strings.Contains(all, no) {
				t.Errorf("%q is there: %s", no, all)
			}
		}
		if cmd.Devices != nil {
			t.Errorf("translation is given devices: %q", cmd.Devices)
		}
	}
}

func TestCommasInOptionsAreDoubled(t *testing.T) {
	if got := options("d", "a", "x,y", "b", "z"); got != "d,a=x,,y,b=z" {
		t.Error(got)
	}
}
