package e2e

import (
	"image"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/cleave-project/cleave/api"
)

// rescue is a bootable medium of Debian's package grub-rescue-pc.
const rescue = "/usr/lib/grub-rescue/grub-rescue-cdrom.iso"

// TestAMachineBootsFromItsMedium has firmware boot an empty machine from a
// real medium, looks at the screen, and keeps the memory over a stop.
func TestAMachineBootsFromItsMedium(t *testing.T) {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skipf("needs an emulator: %v (install qemu-system-x86)", err)
	}
	if _, err := os.Stat(rescue); err != nil {
		t.Skipf("needs a medium: %v (install grub-rescue-pc)", err)
	}
	h := newHost(t)
	h.do("create", "--empty", "desk", "--disk", "1GiB", "--memory", "256MiB", "--iso", rescue)
	h.do("start", "desk")
	eventually(t, "a menu is on the screen", func() bool { return h.colours("desk") > 100 })
	if s := h.show("desk").Status; s.Accel == "" || s.Agent != "" && s.Agent != "none" {
		t.Errorf("accelerator %q, agent %q", s.Accel, s.Agent)
	}
	h.refused("agent", "exec", "desk", "--", "true")

	h.do("image", "import", rescue, "rescue")
	h.do("eject", "desk")
	h.do("insert", "desk", "rescue")
	h.refused("used", "image", "delete", "rescue")

	h.do("stop", "--save", "desk")
	if s := h.show("desk").Status; !s.Saved || s.Phase != api.PhaseStopped {
		t.Errorf("%+v", s)
	}
	h.kill()
	h.start()
	h.do("start", "desk")
	if s := h.show("desk").Status; s.Saved || s.Phase != api.PhaseRunning {
		t.Errorf("%+v", s)
	}
	if n := h.colours("desk"); n <= 100 {
		t.Errorf("the screen is empty after going on: %d", n)
	}
	h.refused("not found", "screenshot", "nobody")
}

// colours counts the pixels of the screen that aren't black.
func (h *host) colours(name string) int {
	h.t.Helper()
	file := filepath.Join(h.t.TempDir(), "screen.png")
	if r := h.try("screenshot", name, file); r.code != 0 {
		return 0
	}
	f, err := os.Open(file)
	if err != nil {
		h.t.Fatal(err)
	}
	defer f.Close()
	img, err := png.Decode(f)
	if err != nil {
		h.t.Fatal(err)
	}
	return lit(img)
}

func lit(img image.Image) int {
	n, b := 0, img.Bounds()
	for y := b.Min.Y; y < b.Max.Y; y++ {
		for x := b.Min.X; x < b.Max.X; x++ {
			if r, g, bl, _ := img.At(x, y).RGBA(); r+g+bl > 0 {
				n++
			}
		}
	}
	return n
}
