package qemu

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/enginetest"
)

// lastWords is what OVMF of Debian wrote to a serial line when it had tried
// everything.
const lastWords = "BdsDxe: starting Boot0003 \"EFI Internal Shell\" from Fv(7CB8BDC9-F8EB-4F34-AAEA-3EE4AF6516A1)\r\n\x1b[2J\x1b[01;01HUEFI Interactive Shell v2.2\r\n" +
	"\x1b[11;01HPress \x1b[1m\x1b[37m\x1b[40mESC\x1b[0m\x1b[37m\x1b[40m in 1 seconds to skip \x1b[1m\x1b[33m\x1b[40mstartup.nsh\x1b[0m\x1b[37m\x1b[40m or any other key to continue." +
	"\r\n\x1b[12;01H\x1b[1m\x1b[33m\x1b[40mShell> \x1b[0m\x1b[37m\x1b[40m"

func TestOnlyFirmwareThatHasGivenUpIsTakenAtItsWord(t *testing.T) {
	for out, want := range map[string]bool{
		"":                            false,
		lastWords:                     true,
		lastWords[:len(lastWords)-40]: false, // it still counts
		lastWords + "ls\r\nShell> ":   false, // somebody works there
		lastWords + "fs0:\\boot.efi\r\nLinux version 6":                                                                false,
		"BdsDxe: No bootable option or device was found.\r\nBdsDxe: Press any key to enter the Boot Manager Menu.\r\n": true,
		"BdsDxe: starting Boot0001 \"UEFI Misc Device\"\r\n":                                                           false,
	} {
		if got := saidByUEFI([]byte(out)); (got != "") != want {
			t.Errorf("%q gives %q", out, got)
		}
	}
}

func FuzzSaidByUEFI(f *testing.F) {
	f.Add([]byte(lastWords))
	f.Fuzz(func(t *testing.T, b []byte) {
		if got := saidByUEFI(b); got != "" && !bytes.Contains(b, []byte("found.")) && !bytes.Contains(b, []byte("Shell")) {
			t.Errorf("%q gives %q", b, got)
		}
	})
}

func FuzzParseMemory(f *testing.F) {
	f.Add("00000000000b8000: 0x53 0x07 0x65 0x07\n00000000000b8008: 0x61 0x07\n")
	f.Add("Cannot access memory\n")
	f.Fuzz(func(t *testing.T, s string) {
		if b := parseMemory(s); len(b) > len(s) {
			t.Errorf("%d bytes of %d", len(b), len(s))
		}
		for _, r := range screenText([]byte(s)) {
			if r != '\n' && (r < ' ' || r > '~') {
				t.Errorf("%q is no text", r)
			}
		}
	})
}

// bootSector makes the first sector of a disk with a partition table.
func bootSector(t *testing.T, path string, code []byte) {
	t.Helper()
	b := make([]byte, 512)
	copy(b, code)
	binary.LittleEndian.PutUint16(b[510:], 0xaa55)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt(b, 0)
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// What there is of systems without an agent is left alone: it can't be told
// whether they do what they are for.
func TestBootOfSystemsIsToldFromOutside(t *testing.T) {
	// A system of one sector, which says something and stands still then: of
	// the interrupt 0x10, function 0xe (teletype output), and hlt.
	speaks := []byte{0xb8, 'A', 0x0e, 0xcd, 0x10, 0xf4, 0xeb, 0xfd}
	silent := []byte{0xf4, 0xeb, 0xfd}
	for _, tt := range []struct {
		name, firmware string
		prepare        func(disk string)
		want           string // of what failed
		alive          bool
	}{
		{"BIOS and an empty disk", "bios", func(string) {}, "no bootable device", false},
		{"BIOS and partitions without a loader", "bios", func(d string) { bootSector(t, d, nil) }, "no boot loader", false},
		{"a small system", "bios", func(d string) { bootSector(t, d, speaks) }, "", false},
		{"a silent one", "bios", func(d string) { bootSector(t, d, silent) }, "", false},
		{"UEFI and an empty disk", "uefi", func(string) {}, "no boot loader on any", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.firmware == "uefi" {
				if _, err := findUEFI(firmwareDir, false); err != nil {
					t.Skip(err)
				}
			}
			e := newEngine(t)
			spec := ownSpec(t)
			spec.Machine.Firmware.Type = tt.firmware
			tt.prepare(filepath.Join(spec.Root.Dir, engine.RootDisk))
			enginetest.Start(t, e, spec)
			look := func() engine.BootState {
				s, err := e.Boot(t.Context(), spec.ID)
				if err != nil {
					t.Fatal(err)
				}
				return s
			}
			if tt.want == "" { // until it runs, and then nothing is to be said of it
				untilText(t, e, spec.ID, "Booting from Hard Disk...")
				for range 20 {
					if s := look(); s != (engine.BootState{}) {
						t.Fatalf("it is said to be %+v", s)
					}
					time.Sleep(50 * time.Millisecond)
				}
				return
			}
			var last engine.BootState
			wait(t, func() string { last = look(); return last.Failed })
			if !strings.Contains(last.Failed, tt.want) || last.Alive {
				t.Errorf("it is said to be %+v", last)
			}
		})
	}
}

// untilText waits for a text on a guest's screen.
func untilText(t *testing.T, e *Engine, id, text string) {
	t.Helper()
	_, c, _, err := e.guest(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	wait(t, func() string {
		dump, err := c.PhysicalMemory(t.Context(), screenAt, screenColumns*screenRows*2)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(screenText(parseMemory(dump)), text) {
			return text
		}
		return ""
	})
}

func TestGuestOfAnImageIsAliveByItself(t *testing.T) {
	e := newEngine(t)
	spec := imageSpec(t, "while :; do sleep 1; done")
	enginetest.Start(t, e, spec)
	if s, err := e.Boot(t.Context(), spec.ID); err != nil || !s.Alive {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := e.Boot(t.Context(), fmt.Sprint("x", spec.ID[1:])); err == nil {
		t.Error("nothing is said of a guest that there isn't")
	}
}
