package qemu

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/qemu/accel"
)

// fake is a monitor on a host whose QEMUs are scripts.
func fake(t *testing.T, speed accel.Speed, err error, scripts map[string]string) *monitor {
	t.Helper()
	dir := t.TempDir()
	for name, script := range scripts {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	m := newMonitor()
	t.Cleanup(m.close)
	m.tools.dirs, m.tools.firmware = []string{dir}, dir
	m.speed = func() (accel.Speed, error) { return speed, err }
	return m
}

const (
	recent  = "echo QEMU emulator version 7.2.22 '(Debian 1:7.2+dfsg-7)'"
	ancient = "echo QEMU emulator version 4.2.1"
)

func TestProbeSaysWhatIsMissing(t *testing.T) {
	for _, c := range []struct {
		name    string
		scripts map[string]string
		reason  string // in the reason why there is no engine
		hint    string
	}{
		{"none", nil, "no QEMU for amd64 (qemu-system-x86_64)", "install the package qemu-system-x86"},
		{"too old", map[string]string{"qemu-system-x86_64": ancient}, "version 4.2.1, and 6.2 is needed", "newer qemu-system-x86"},
		{"broken", map[string]string{"qemu-system-x86_64": "echo no library >&2; exit 127"}, "doesn't run", "install its package again"},
		{"something else", map[string]string{"qemu-system-x86_64": "echo hello"}, "is no QEMU", ""},
		{"there", map[string]string{"qemu-system-x86_64": recent}, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := fake(t, 1e9, nil, c.scripts)
			caps, findings := m.Probe(t.Context())
			if caps.Available != (c.reason == "") {
				t.Errorf("available: %v", caps.Available)
			}
			if least := caps.LeastMemory("riscv64"); caps.Available && (least != 128*api.MiB || caps.LeastMemory("amd64") != minMemory) {
				t.Errorf("a guest of riscv64 is said to need %s", least)
			}
			if c.reason == "" {
				if !slices.Equal(caps.Archs, []string{"amd64"}) {
					t.Errorf("architectures are %v", caps.Archs)
				}
				return
			}
			if caps.Reason == nil || caps.Reason.Code != api.CodeUnsupported || !strings.Contains(caps.Reason.Message, c.reason) || !strings.Contains(caps.Reason.Hint, c.hint) {
				t.Errorf("the reason is %v", caps.Reason)
			}
			if !slices.ContainsFunc(findings, func(f api.Finding) bool { return f.Name == "QEMU" && f.State == missing }) {
				t.Errorf("findings are %+v", findings)
			}
		})
	}
}

func TestProbeNoticesAnUpgrade(t *testing.T) {
	m := fake(t, 1e9, nil, map[string]string{"qemu-system-x86_64": ancient})
	if caps, _ := m.Probe(t.Context()); caps.Available {
		t.Error("an old QEMU is taken")
	}
	path := filepath.Join(m.tools.dirs[0], "qemu-system-x86_64")
	if err := os.WriteFile(path+".new", []byte("#!/bin/sh\n"+recent), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	if caps, _ := m.Probe(t.Context()); !caps.Available {
		t.Errorf("a new QEMU is not: %v", caps.Reason)
	}
}

func TestProbeFindsArchitecturesAndWhatTheyNeed(t *testing.T) {
	m := fake(t, 1e9, nil, map[string]string{"qemu-system-x86_64": recent, "qemu-system-aarch64": recent})
	caps, findings := m.Probe(t.Context())
	if !slices.Equal(caps.Archs, []string{"amd64", "arm64"}) {
		t.Errorf("architectures are %v", caps.Archs)
	}
	remedies := map[string]string{}
	for _, f := range findings {
		remedies[f.Name] = f.Remedy
	}
	for name, want := range map[string]string{
		"architecture riscv64": "qemu-system-misc", "UEFI": "ovmf", "Secure Boot": "ovmf",
	} {
		if !strings.Contains(remedies[name], want) {
			t.Errorf("the remedy for %s is %q", name, remedies[name])
		}
	}
	_, err := m.host(t.Context(), &engine.Machine{Arch: "riscv64"})
	if !api.IsCode(err, api.CodeUnsupported) || !strings.Contains(err.Error(), "qemu-system-misc") {
		t.Errorf("a machine of riscv64 gives %v", err)
	}
}

// TestAcceleratorIsChosenByItsSpeed has KVM be fast, slow, broken or absent.
func TestAcceleratorIsChosenByItsSpeed(t *testing.T) {
	for _, c := range []struct {
		name   string
		speed  accel.Speed
		err    error
		asked  string
		arch   string
		want   string // empty for an error
		detail string // in the finding
	}{
		{"fast", 3e9, nil, "", "amd64", "kvm", "KVM, measured"},
		{"fast, not wanted", 3e9, nil, "tcg", "amd64", "tcg", ""},
		{"fast, wanted", 3e9, nil, "kvm", "amd64", "kvm", ""},
		{"fast, for others", 3e9, nil, "", "arm64", "tcg", ""},
		{"fast, wanted for others", 3e9, nil, "kvm", "arm64", "", ""},
		{"interpreted", 1e6, nil, "", "amd64", "tcg", "1 million instructions per second only"},
		{"interpreted, wanted", 1e6, nil, "kvm", "amd64", "", ""},
		{"absent", 0, accel.ErrNoDevice, "", "amd64", "tcg", "no /dev/kvm"},
		{"absent, wanted", 0, accel.ErrNoDevice, "kvm", "amd64", "", ""},
		{"forbidden", 0, fmt.Errorf("open: %w", fs.ErrPermission), "", "amd64", "tcg", "permission denied"},
		{"broken", 0, errors.New("the CPU stopped for reason 9"), "", "amd64", "tcg", "doesn't work: the CPU stopped"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := fake(t, c.speed, c.err, map[string]string{"qemu-system-x86_64": recent})
			got, err := m.accel(&engine.Machine{Arch: c.arch, Accel: c.asked})
			if got != c.want || (err != nil) != (c.want == "") {
				t.Errorf("chosen is %q, %v", got, err)
			}
			if err != nil && (!api.IsCode(err, api.CodeUnsupported) || api.AsError(err).Field != "spec.machine.accel") {
				t.Errorf("error %+v", api.AsError(err))
			}
			_, findings := m.Probe(t.Context())
			i := slices.IndexFunc(findings, func(f api.Finding) bool { return f.Name == "acceleration" })
			if i < 0 || !strings.Contains(findings[i].Detail, c.detail) || (findings[i].State == ok) != (c.speed > accel.Enough) || (findings[i].Remedy == "") != (findings[i].State == ok) {
				t.Errorf("findings are %+v", findings)
			}
		})
	}
}

func TestValidateRefusesWhatMachinesCannot(t *testing.T) {
	m := newMonitor()
	defer m.close()
	fit := func() *engine.Spec {
		return &engine.Spec{ID: "x", Machine: &engine.Machine{Arch: "amd64", CPUs: 1, Memory: 256 * api.MiB}}
	}
	if err := m.Validate(fit()); err != nil {
		t.Error(err)
	}
	for _, c := range []struct {
		name   string
		change func(*engine.Spec)
		code   api.Code
	}{
		{"architecture", func(s *engine.Spec) { s.Machine.Arch = "s390x" }, api.CodeUnsupported},
		{"too little memory", func(s *engine.Spec) { s.Machine.Memory = 64 * api.MiB }, api.CodeInvalid},
		{"too many CPUs", func(s *engine.Spec) { s.Machine.CPUs = 500 }, api.CodeUnsupported},
		{"too many disks", func(s *engine.Spec) { s.Machine.Disks = make([]engine.Disk, 30) }, api.CodeUnsupported},
		{"a drive for an image", func(s *engine.Spec) { s.Machine.Disks = []engine.Disk{{CDROM: true}} }, api.CodeUnsupported},
		{"firmware of arm64", func(s *engine.Spec) { s.Machine.Arch, s.Machine.Firmware.Type = "arm64", "uefi" }, api.CodeUnsupported},
		{"too many drives", func(s *engine.Spec) {
			s.Machine.Firmware.Type = "bios"
			s.Machine.Disks = slices.Repeat([]engine.Disk{{CDROM: true}}, maxDrives+1)
		}, api.CodeUnsupported},
	} {
		s := fit()
		c.change(s)
		if err := m.Validate(s); !api.IsCode(err, c.code) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestFirmwareIsFoundByItsDescription(t *testing.T) {
	dir := t.TempDir()
	describe := func(name, format, machines, features string) {
		text := fmt.Sprintf(`{"mapping":{"device":"flash","executable":{"filename":"/fw/%s","format":%q},"nvram-template":{"filename":"/fw/vars","format":"raw"}},
			"targets":[{"architecture":"x86_64","machines":[%q]}],"features":[%s]}`, name, format, machines, features)
		if err := os.WriteFile(filepath.Join(dir, name+".json"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	describe("10-other-machine", "raw", "pc-i440fx-*", "")
	describe("20-other-format", "vmdk", "pc-q35-*", "")
	describe("30-keys", "raw", "pc-q35-*", `"secure-boot","enrolled-keys","requires-smm"`)
	describe("40-smm", "raw", "pc-q35-*", `"secure-boot","requires-smm"`)
	describe("50-plain", "qcow2", "pc-q35-*", "")
	describe("60-later", "raw", "pc-q35-*", "")
	if err := os.WriteFile(filepath.Join(dir, "05-broken.json"), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	for secure, want := range map[bool]string{false: "/fw/50-plain", true: "/fw/30-keys"} {
		d, err := findUEFI(dir, secure)
		if err != nil || d.Mapping.Executable.Filename != want {
			t.Errorf("secure %v: %+v, %v", secure, d, err)
		}
	}
	if _, err := findUEFI(filepath.Join(dir, "none"), true); !api.IsCode(err, api.CodeUnsupported) || !strings.Contains(err.Error(), "ovmf") {
		t.Errorf("without any: %v", err)
	}
}
