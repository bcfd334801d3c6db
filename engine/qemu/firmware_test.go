package qemu

import (
	"bytes"
	"context"
	"image"
	"image/png"
	"os"
	"testing"
	"time"

	"github.com/cleave-project/cleave/engine"
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
		_ = os.WriteFile(dir+"/"+t.Name()+".png", b, 0o644)
	}
	img, err := png.Decode(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestDiskWithoutBootLoaderIsSeenOnTheScreen(t *testing.T) {
	e := newEngine(t)
	spec := ownSpec(t)
	startGuest(t, e, spec)
	time.Sleep(5 * time.Second)
	t.Log(screen(t, e, spec.ID).Bounds())
	t.Log(guestLog(e, spec.ID))
}

func TestMediumBoots(t *testing.T) {
	e := newEngine(t)
	spec := ownSpec(t)
	spec.Machine.Disks = []engine.Disk{{ID: "cdrom", Path: rescue, ReadOnly: true, CDROM: true}}
	startGuest(t, e, spec)
	time.Sleep(12 * time.Second)
	t.Log(screen(t, e, spec.ID).Bounds())
}
