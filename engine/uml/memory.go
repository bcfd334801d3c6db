package uml

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine/machine"
	"github.com/cleave-project/cleave/engine/uml/mconsole"
)

// takenName is a file of the runtime directory: what was taken from the
// guest's RAM, and at which of its boots, since a reboot gives it back.
const takenName = "taken"

// Bounds of taking memory from a guest.
const (
	takeTime  = 10 * time.Second // for its kernel to write back what it caches
	takeRound = 100 * time.Millisecond
	// noise is how much its own use may change meanwhile: the kernel doesn't
	// say how much it gave (mem_config in arch/um/drivers/mconsole_kern.c).
	noise = 2 * api.MiB
	// reserve is left free, or processes are killed for the last of it.
	reserve = 4 * api.MiB
)

// Update implements machine.Monitor: RAM above the limit is taken from the
// guest, whose kernel gives its pages back to the host. The cgroup still
// bounds a guest that doesn't cooperate to what it was started with.
func (*monitor) Update(ctx context.Context, g *machine.Guest, r api.Resources) error {
	limit := r.Memory
	if limit == 0 || limit > g.Memory {
		limit = g.Memory
	}
	if limit < minMemory {
		return api.Errorf(api.CodeInvalid, "%s of memory: a guest of kind pvm needs %s", limit, minMemory).WithField("spec.resources.memory")
	}
	b := &balloon{console: console(g), file: filepath.Join(g.Dir, takenName)}
	if err := b.open(ctx); err != nil {
		return fmt.Errorf("change the memory of guest %s: %w", g.ID, err)
	}
	want := g.Memory - limit
	if want == b.taken {
		return nil
	}
	before := b.taken
	if err := b.to(ctx, want); err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		defer cancel()
		return errors.Join(fmt.Errorf("change the memory of guest %s to %s: %w", g.ID, limit, err), b.to(undo, min(before, b.taken)))
	}
	return nil
}

// balloon is memory that a guest has been taken.
type balloon struct {
	console *mconsole.Console
	file    string
	boot    string
	taken   api.Bytes
}

// open reads what was taken, if the guest hasn't booted since.
func (b *balloon) open(ctx context.Context) error {
	id, err := b.ask(ctx, "proc sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	b.boot = strings.TrimSpace(id)
	text, err := os.ReadFile(b.file)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if boot, taken, ok := strings.Cut(string(text), "\n"); ok && boot == b.boot {
		n, err := strconv.ParseInt(taken, 10, 64)
		if err != nil {
			return fmt.Errorf("read %s: %w", b.file, err)
		}
		b.taken = api.Bytes(n)
	}
	return nil
}

// to takes memory until want is taken, or gives back.
func (b *balloon) to(ctx context.Context, want api.Bytes) error {
	deadline := time.Now().Add(takeTime)
	for b.taken != want {
		if want < b.taken {
			if _, err := b.ask(ctx, fmt.Sprintf("config mem=+%d", b.taken-want)); err != nil {
				return err
			}
			return b.note(want)
		}
		before, err := b.free(ctx)
		if err != nil {
			return err
		}
		if part := min(want-b.taken, before-reserve); part > 0 {
			if _, err := b.ask(ctx, fmt.Sprintf("config mem=-%d", part)); err != nil {
				return err
			}
			after, err := b.free(ctx)
			if err != nil {
				return err
			}
			got := min(max(before-after, 0), part)
			if part-got <= noise {
				got = part
			}
			if err := b.note(b.taken + got); err != nil {
				return err
			}
			if got == part {
				continue
			}
		}
		if time.Now().After(deadline) {
			return api.Errorf(api.CodeConflict, "%s of it are in use", want-b.taken).WithField("spec.resources.memory").
				WithHint("end something in the guest, or restart the instance with less memory")
		}
		// Taking has woken the guest's own reclaim.
		select {
		case <-time.After(takeRound):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// note keeps what was taken for the next daemon.
func (b *balloon) note(taken api.Bytes) error {
	b.taken = taken
	return os.WriteFile(b.file, fmt.Appendf(nil, "%s\n%d", b.boot, taken), 0o600)
}

// free is what the guest's kernel says that nobody uses.
func (b *balloon) free(ctx context.Context) (api.Bytes, error) {
	text, err := b.ask(ctx, "proc meminfo")
	if err != nil {
		return 0, err
	}
	return parseFree(text)
}

// parseFree reads MemFree of /proc/meminfo (proc_meminfo(5)).
func parseFree(text string) (api.Bytes, error) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 3 && f[0] == "MemFree:" && f[2] == "kB" {
			n, err := strconv.ParseUint(f[1], 10, 40)
			if err != nil {
				break
			}
			return api.Bytes(n) * api.KiB, nil
		}
	}
	return 0, errors.New("the guest's kernel doesn't say how much memory is free")
}

func (b *balloon) ask(ctx context.Context, command string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	answer, err := b.console.Command(ctx, command)
	if errors.Is(err, context.DeadlineExceeded) {
		return "", api.Errorf(api.CodeTimeout, "the guest's kernel doesn't answer: %w", err).
			WithHint("it is paused, hangs or gets no CPU; try again when it runs, or restart it")
	}
	return answer, err
}
