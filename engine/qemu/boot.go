package qemu

import (
	"bytes"
	"context"
	"regexp"
	"strconv"
	"strings"

	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/machine"
	"github.com/cleave-project/cleave/engine/qemu/qmp"
	"github.com/cleave-project/cleave/keeper"
)

var _ engine.Booter = (*Engine)(nil)

// A system reads much more than firmware does in search of one: SeaBIOS reads
// the first sector, OVMF 108 KiB of a partitioned disk (measured with 1.16.2
// and 2022.11), a kernel and its initramfs are tens of MiB.
const aliveReads = 1 << 20

// Boot implements engine.Booter.
func (e *Engine) Boot(ctx context.Context, id string) (engine.BootState, error) {
	g, c, s, err := e.guest(ctx, id)
	if err != nil || !g.Firmware {
		return engine.BootState{Alive: err == nil}, err
	}
	s.mu.Lock()
	open := s.open[agentPort] || s.open[guestPort]
	s.mu.Unlock()
	if open || e.Answers(id) {
		return engine.BootState{Alive: true}, nil
	}
	stats, err := c.BlockStats(ctx)
	if err != nil {
		return engine.BootState{}, machine.Unanswered(id, err)
	}
	var reads int64
	uefi := false
	for _, d := range stats {
		if d.Node == "code" || d.Node == "vars" { // of the firmware itself
			uefi = true
			continue
		}
		reads += d.Stats.ReadBytes
		if d.Stats.Writes+d.Stats.Flushes > 0 || reads > aliveReads {
			return engine.BootState{Alive: true}, nil
		}
	}
	var state engine.BootState
	if uefi {
		state.Failed = saidByUEFI(e.lastOutput(ctx, g))
		return state, nil
	}
	state.Failed, err = shownByBIOS(ctx, c)
	return state, machine.Unanswered(id, err)
}

// lastOutput is the last that came over the serial console since the start.
func (e *Engine) lastOutput(ctx context.Context, g *machine.Guest) []byte {
	const most = 16 << 10
	var out []byte
	_ = keeper.ReadLogs(ctx, e.LogDir(g.ID), keeper.LogOptions{Since: g.Started}, func(entry keeper.LogEntry) error {
		out = append(out, entry.Data...)
		out = out[max(0, len(out)-most):]
		return nil
	})
	return out
}

// escapeRE are the sequences by which OVMF moves the cursor and colours text
// (ECMA-48 §5.4).
var escapeRE = regexp.MustCompile("\x1b\\[[0-9;]*[A-Za-z]")

// uefiRE are the last words of OVMF when it has tried everything: its shell
// waits for its first command, or its boot manager for a key (Shell.c and
// BdsEntry.c of EDK II).
var uefiRE = regexp.MustCompile(`(startup\.nsh\s+or any other key to continue\.\s*Shell>|No bootable option or device was found\.(\s*BdsDxe: Press any key to enter the Boot Manager Menu\.?)?)$`)

// saidByUEFI is what it means that firmware wrote this last; empty if it
// isn't known to have given up. Somebody who works in its shell has made it
// write more.
func saidByUEFI(out []byte) string {
	text := strings.TrimSpace(string(escapeRE.ReplaceAll(out, nil)))
	if !uefiRE.MatchString(text) {
		return ""
	}
	return "the firmware has found no boot loader on any of its devices"
}

// The text screen of a PC.
const (
	screenAt      = 0xb8000
	screenColumns = 80
	screenRows    = 25
)

// The boot sector, and its part that is code: partitions and a signature come
// behind it.
const (
	bootSectorAt   = 0x7c00
	bootSectorCode = 440
)

// shownByBIOS is why SeaBIOS has given up, as its screen shows; empty if it
// isn't known to have.
func shownByBIOS(ctx context.Context, c *qmp.Client) (string, error) {
	dump, err := c.PhysicalMemory(ctx, screenAt, screenColumns*screenRows*2)
	if err != nil {
		return "", err
	}
	text := screenText(parseMemory(dump))
	last := ""
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			last = line
		}
	}
	// Both are of SeaBIOS's boot.c.
	switch {
	case last == "No bootable device.":
		return "the firmware has found no bootable device", nil
	case last != "Booting from Hard Disk...":
		return "", nil
	}
	if dump, err = c.PhysicalMemory(ctx, bootSectorAt, bootSectorCode); err != nil {
		return "", err
	}
	code := parseMemory(dump)
	if len(code) < bootSectorCode || len(bytes.Trim(code, "\x00")) > 0 {
		return "", nil
	}
	return "the first sector of its disk has partitions, but no boot loader", nil
}

// parseMemory reads what the monitor's command xp prints: lines of an address
// and bytes in hexadecimal.
func parseMemory(dump string) []byte {
	var b []byte
	for line := range strings.Lines(dump) {
		_, words, _ := strings.Cut(line, ":")
		for w := range strings.FieldsSeq(words) {
			n, err := strconv.ParseUint(w, 0, 8)
			if err != nil {
				return nil
			}
			b = append(b, byte(n))
		}
	}
	return b
}

// screenText is what a text screen's memory shows: characters and their
// colours take turns.
func screenText(b []byte) string {
	var s strings.Builder
	for i := 0; i+1 < len(b) && i < screenColumns*screenRows*2; i += 2 {
		if i > 0 && i%(2*screenColumns) == 0 {
			s.WriteByte('\n')
		}
		switch c := b[i]; {
		case c >= ' ' && c < 0x7f:
			s.WriteByte(c)
		case c == 0:
			s.WriteByte(' ')
		default:
			s.WriteByte('?')
		}
	}
	return s.String()
}
