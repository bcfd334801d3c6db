package qemu

import (
	"bytes"
	"context"
	"errors"
	"image"
	"image/png"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/enginetest"
	"github.com/cleave-project/cleave/engine/qemu/qmp"
)

// rescue is a bootable medium of Debian's package grub-rescue-pc.
const rescue = "/usr/lib/grub-rescue/grub-rescue-cdrom.iso"

// screen takes a picture of a guest's screen.
func screen(t *testing.T, e *Engine, id string) image.Image {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	b, err := e.Screenshot(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	if dir := os.Getenv("CLEAVE_TEST_SCREENS"); dir != "" {
		_ = os.WriteFile(filepath.Join(dir, strings.ReplaceAll(t.Name(), "/", "-")+".png"), b, 0o644)
	}
	img, err := png.Decode(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// lit is how many points of a part of a picture are bright.
func lit(img image.Image, part image.Rectangle) int {
	n := 0
	for y := part.Min.Y; y < part.Max.Y; y++ {
		for x := part.Min.X; x < part.Max.X; x++ {
			if r, g, b, _ := img.At(x, y).RGBA(); r+g+b > 3*0x6000 {
				n++
			}
		}
	}
	return n
}

// untilScreen takes pictures until one shows what is looked for.
func untilScreen(t *testing.T, e *Engine, id string, shows func(image.Image) bool) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); time.Now().Before(deadline); time.Sleep(time.Second) {
		if shows(screen(t, e, id)) {
			return
		}
	}
	t.Fatal("the screen doesn't show it")
}

// textLines tells which lines of a screen in text mode have text.
func textLines(img image.Image) []int {
	const height = 16 // of a line, in points
	var lines []int
	for y := img.Bounds().Min.Y; y+height <= img.Bounds().Max.Y; y += height {
		if lit(img, image.Rect(0, y, img.Bounds().Dx(), y+height)) > 40 {
			lines = append(lines, y/height)
		}
	}
	return lines
}

// TestDiskWithoutBootLoader runs, and its screen shows why it does nothing:
// SeaBIOS's greeting, the attempt, its failure, and that there is no more.
func TestDiskWithoutBootLoader(t *testing.T) {
	e := newEngine(t)
	spec := ownSpec(t)
	enginetest.Start(t, e, spec)
	untilScreen(t, e, spec.ID, func(img image.Image) bool {
		return slices.Equal(textLines(img), []int{0, 1, 2, 4}) || slices.Equal(textLines(img), []int{0, 1, 2, 4, 5})
	})
	if list, err := e.List(t.Context()); err != nil || len(list) != 1 || !list[0].Running {
		t.Errorf("guests are %+v, %v", list, err)
	}
}

// TestMediumBootsAndIsChanged boots a real one: its menu's first entry is a
// bar of light.
func TestMediumBootsAndIsChanged(t *testing.T) {
	if _, err := os.Stat(rescue); err != nil {
		t.Skipf("needs a bootable medium: %v (install grub-rescue-pc)", err)
	}
	e := newEngine(t)
	spec := ownSpec(t)
	iso := filepath.Join(t.TempDir(), "medium.iso")
	if err := os.Link(rescue, iso); err != nil {
		b, err := os.ReadFile(rescue)
		if err == nil {
			err = os.WriteFile(iso, b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	spec.Machine.Disks = []engine.Disk{{ID: "cdrom", Path: iso, ReadOnly: true, CDROM: true}}
	enginetest.Start(t, e, spec)
	// The medium's file may go while it is in the drive.
	if err := os.Remove(iso); err != nil {
		t.Fatal(err)
	}
	untilScreen(t, e, spec.ID, func(img image.Image) bool {
		b := img.Bounds()
		for y := 0; y+16 < b.Dy(); y += 8 {
			if lit(img, image.Rect(b.Dx()/2, y, b.Dx()/2+200, y+8)) == 200*8 {
				return true
			}
		}
		return false
	})
	other := filepath.Join(t.TempDir(), "other.iso")
	if err := os.WriteFile(other, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, medium := range []string{"", other, other, "", "", rescue} {
		if err := e.InsertMedium(t.Context(), spec.ID, medium); err != nil {
			t.Errorf("insert %q: %v", medium, err)
		}
	}
	_, c, _, err := e.guest(t.Context(), spec.ID)
	if err != nil {
		t.Fatal(err)
	}
	var sets []any
	if err := c.Execute(t.Context(), "query-fdsets", nil, &sets); err != nil || len(sets) != 3 {
		t.Errorf("QEMU holds %d sets of descriptors, %v: console, disk and medium are 3\n%v", len(sets), err, sets)
	}
	if err := e.InsertMedium(t.Context(), spec.ID, filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a medium that isn't there gives %v", err)
	}
}

func TestEmptyDriveTakesAMedium(t *testing.T) {
	e := newEngine(t)
	spec := ownSpec(t)
	spec.Machine.Disks = []engine.Disk{{ID: "cdrom", ReadOnly: true, CDROM: true}}
	enginetest.Start(t, e, spec)
	iso := filepath.Join(t.TempDir(), "medium.iso")
	if err := os.WriteFile(iso, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := e.InsertMedium(t.Context(), spec.ID, iso); err != nil {
		t.Fatal(err)
	}
	_, c, _, err := e.guest(t.Context(), spec.ID)
	if err != nil {
		t.Fatal(err)
	}
	drives, err := c.Drives(t.Context())
	if err != nil || !slices.ContainsFunc(drives, func(d qmp.Drive) bool { return d.Removable && d.Inserted != nil }) {
		t.Errorf("drives are %+v, %v", drives, err)
	}
}

func TestScreenIsServedByVNC(t *testing.T) {
	e := newEngine(t)
	spec := ownSpec(t)
	enginetest.Start(t, e, spec)
	for range 2 { // one after the other, and the first one stays
		conn, err := e.VNC(t.Context(), spec.ID)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		// RFC 6143, 7.1.1 and 7.1.2: version, and no authentication.
		hello := make([]byte, 12)
		if _, err := io.ReadFull(conn, hello); err != nil || string(hello) != "RFB 003.008\n" {
			t.Fatalf("greeted by %q, %v", hello, err)
		}
		if _, err := conn.Write(hello); err != nil {
			t.Fatal(err)
		}
		types := make([]byte, 2)
		if _, err := io.ReadFull(conn, types); err != nil || !bytes.Equal(types, []byte{1, 1}) {
			t.Fatalf("security types are %v, %v", types, err)
		}
	}
}

func TestGuestOfAnImageHasNoScreen(t *testing.T) {
	e := newEngine(t)
	spec := imageSpec(t, "while :; do sleep 1; done")
	enginetest.Start(t, e, spec)
	if _, err := e.Screenshot(t.Context(), spec.ID); !api.IsCode(err, api.CodeUnsupported) {
		t.Errorf("a screenshot gives %v", err)
	}
	if _, err := e.VNC(t.Context(), spec.ID); !api.IsCode(err, api.CodeUnsupported) {
		t.Errorf("VNC gives %v", err)
	}
}

// TestUEFIStarts looks for the firmware's picture, with all that can be asked
// for it: Secure Boot and a TPM.
func TestUEFIStarts(t *testing.T) {
	for _, c := range []struct {
		name        string
		secure, tpm bool
	}{{"plain", false, false}, {"secure", true, true}} {
		t.Run(c.name, func(t *testing.T) {
			e := newEngine(t)
			spec := ownSpec(t)
			f := &spec.Machine.Firmware
			f.Type, f.SecureBoot, f.TPM = "uefi", c.secure, c.tpm
			if _, err := findUEFI(firmwareDir, c.secure); err != nil {
				t.Skip(err)
			}
			if _, err := os.Stat(swtpm); err != nil && c.tpm {
				t.Skipf("needs a TPM: %v (install swtpm)", err)
			}
			enginetest.Start(t, e, spec)
			// Before it starts the picture is QEMU's own, and smaller.
			untilScreen(t, e, spec.ID, func(img image.Image) bool { return img.Bounds().Dx() >= 800 && lit(img, img.Bounds()) > 1000 })
			if c.tpm {
				if st, err := os.Stat(filepath.Join(f.State, "tpm", "tpm2-00.permall")); err != nil || st.Size() == 0 {
					t.Errorf("the TPM keeps nothing: %v", err)
				}
			}
			left, _ := filepath.Glob(filepath.Join(f.State, "vars*"))
			if len(left) != 1 {
				t.Errorf("variables are %v", left)
			}
		})
	}
}

// TestCPUsAreAddedWhileASystemRuns needs nothing of the system: the machine
// has them, whether it uses them or not.
func TestCPUsAreAddedWhileASystemRuns(t *testing.T) {
	if runtime.NumCPU() < 2 {
		t.Skip("needs two processors: this host has one")
	}
	e := newEngine(t)
	spec := ownSpec(t)
	enginetest.Start(t, e, spec)
	_, c, _, err := e.guest(t.Context(), spec.ID)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []int{1, 2, 2} {
		if err := e.Update(t.Context(), spec.ID, api.Resources{CPUs: float64(want) - 0.5}, spec.Root.Dir); err != nil {
			t.Fatal(err)
		}
		if n, err := c.CPUCount(t.Context()); err != nil || n != want {
			t.Errorf("it has %d CPUs, and not %d: %v", n, want, err)
		}
	}
}

func TestPausedGuestStandsStill(t *testing.T) {
	e := newEngine(t)
	spec := ownSpec(t)
	enginetest.Start(t, e, spec)
	_, c, _, err := e.guest(t.Context(), spec.ID)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		do   func(context.Context, string) error
		want string
	}{{e.Pause, qmp.StatePaused}, {e.Pause, qmp.StatePaused}, {e.Resume, qmp.StateRunning}, {e.Resume, qmp.StateRunning}} {
		if err := step.do(t.Context(), spec.ID); err != nil {
			t.Fatal(err)
		}
		if got, err := c.Status(t.Context()); err != nil || got != step.want {
			t.Errorf("it is %s, and not %s: %v", got, step.want, err)
		}
	}
}
