package e2e

import (
	"bytes"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cleave-project/cleave/api"
)

// TestDisksWithoutBootLoaders has both firmwares look for one, and a boot
// loader that waits for somebody beside them, which is left alone.
func TestDisksWithoutBootLoaders(t *testing.T) {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skipf("needs an emulator: %v (install qemu-system-x86)", err)
	}
	if _, err := os.Stat(rescue); err != nil {
		t.Skipf("needs a medium: %v (install grub-rescue-pc)", err)
	}
	h := newHost(t)
	disk := filepath.Join(t.TempDir(), "disk.raw")
	sector := make([]byte, 1<<20)
	copy(sector[446:], []byte{0x80, 0, 2, 0, 0x83, 0, 0, 0, 1, 0, 0, 0, 0xff, 0, 0, 0})
	sector[510], sector[511] = 0x55, 0xaa
	if err := os.WriteFile(disk, sector, 0o600); err != nil {
		t.Fatal(err)
	}
	h.do("image", "import", disk, "data-disk")
	firmwares := []string{"bios"}
	if _, err := os.Stat("/usr/share/OVMF"); err == nil {
		firmwares = append(firmwares, "uefi")
	}
	h.do("create", "--empty", "menu", "--disk", "1GiB", "--memory", "256MiB", "--iso", rescue, "--boot-timeout", "2s")
	h.do("start", "menu")
	for _, firmware := range firmwares {
		h.do("launch", "data-disk", firmware, "--boot", firmware, "--memory", "256MiB", "--boot-timeout", "5s", "--restart", "always")
	}
	for _, firmware := range firmwares {
		eventually(t, firmware+" gives up", func() bool { return h.show(firmware).Status.Phase == api.PhaseFailed })
		s := h.show(firmware).Status
		if s.Exit == nil || s.Exit.Reason != "no-boot" || !api.IsCode(s.Error, api.CodeTimeout) || !strings.Contains(s.Error.Message, "no boot loader") {
			t.Errorf("%s: %+v, %v", firmware, s.Exit, s.Error)
		}
		file := filepath.Join(t.TempDir(), "last.png")
		h.do("screenshot", firmware, "--last", file)
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if img, err := png.Decode(bytes.NewReader(b)); err != nil || lit(img) < 100 {
			t.Errorf("the last screen of %s shows nothing: %v", firmware, err)
		}
		if r := h.try("show", firmware); !strings.Contains(r.out, "no boot loader") {
			t.Errorf("%s", r.out)
		}
		if out := h.do("events", "--since", "1h", "--follow=false"); !strings.Contains(out, "no boot loader") {
			t.Errorf("nothing is told: %s", out)
		}
	}
	h.refused("no picture of the screen", "screenshot", "--last", "menu")
	if s := h.show("menu").Status; s.Phase != api.PhaseRunning {
		t.Errorf("what waits for somebody is %s: %v", s.Phase, s.Error)
	}
	// It answers no power button, and that is said.
	r := h.try("stop", "menu", "--timeout", "3s")
	if r.code != 0 || !strings.Contains(r.err, "power button") || !strings.Contains(r.err, "stop --force menu") {
		t.Errorf("%+v", r)
	}
}
