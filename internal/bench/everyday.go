package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// prefix begins the names of all guests of a run, Cleave's and the peers'.
const prefix = "clbench-"

// listed is how many guests LXD lists.
const listed = 11

func guest(n int) string { return fmt.Sprintf("%s%04d", prefix, n) }

// printHost says what was measured on.
func (b *bench) printHost(ctx context.Context) {
	info, err := b.host.client.Host(ctx)
	if err != nil {
		return // the first measurement will tell
	}
	load, _, _ := strings.Cut(readString("/proc/loadavg"), " ")
	fmt.Printf("Cleave %s, Linux %s, %d CPUs, %s, load %s\n", info.Version, info.Kernel, info.CPUs, info.Memory, load)
	lxd, runc := "not installed", "not installed"
	if b.lxd != nil {
		lxd = b.lxd.version
	}
	if b.runc != nil {
		if v, err := exec.CommandContext(ctx, "runc", "--version").Output(); err == nil {
			runc, _, _ = strings.Cut(strings.TrimPrefix(string(v), "runc version "), "\n")
		}
	}
	fmt.Printf("beside LXD (%s) and runc (%s), in turns, %d rounds\n", lxd, runc, b.rounds)
}

func readString(path string) string {
	s, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(s))
}

// commands of one kind of work, by name of a guest.
type commands struct {
	cleave, lxd, runc func(name string) *exec.Cmd
}

func (b *bench) launching() commands {
	c := commands{cleave: func(g string) *exec.Cmd { return b.host.cli("launch", "base", g) }}
	if b.lxd != nil {
		c.lxd = b.lxd.launch
	}
	if b.runc != nil {
		c.runc = b.runc.launch
	}
	return c
}

func (b *bench) deleting() commands {
	c := commands{cleave: func(g string) *exec.Cmd { return b.host.cli("delete", "--force", g) }}
	if b.lxd != nil {
		c.lxd = b.lxd.delete
	}
	if b.runc != nil {
		c.runc = b.runc.delete
	}
	return c
}

// turn does the work once each.
func (r *row) turn(ctx context.Context, c commands, name string) error {
	for _, w := range []struct {
		to  *samples
		cmd func(string) *exec.Cmd
	}{{&r.cleave, c.cleave}, {&r.lxd, c.lxd}, {&r.runc, c.runc}} {
		if w.cmd == nil {
			continue
		}
		if err := w.to.run(ctx, w.cmd(name)); err != nil {
			return err
		}
	}
	return nil
}

// turns does the work for n guests.
func (r *row) turns(ctx context.Context, c commands, n int) error {
	for i := range n {
		if err := r.turn(ctx, c, guest(i)); err != nil {
			return err
		}
	}
	return nil
}

// launch times the start of guests from the typed command to running. The
// first of each is left out of the figures: it fills caches.
func (b *bench) launch(ctx context.Context) error {
	r := row{what: "launch (ours with network)", ratio: 12, about: 30 * time.Millisecond}
	if err := b.withGuests(ctx, b.rounds+1, &r, nil); err != nil {
		return err
	}
	r.dropFirst()
	table(os.Stdout, "Launch of a tiny image, from typed command to running", r)
	return nil
}

// delete times the removal of running guests.
func (b *bench) delete(ctx context.Context) error {
	r := row{what: "delete --force", ratio: 20, about: 40 * time.Millisecond}
	if err := b.withGuests(ctx, b.rounds+1, nil, &r); err != nil {
		return err
	}
	r.dropFirst()
	table(os.Stdout, "Delete of a running guest", r)
	return nil
}

// withGuests launches guests of all kinds and deletes them, timing either.
func (b *bench) withGuests(ctx context.Context, n int, launch, remove *row) error {
	for _, w := range []struct {
		r *row
		c commands
	}{{launch, b.launching()}, {remove, b.deleting()}} {
		r := w.r
		if r == nil {
			r = &row{}
		}
		if err := r.turns(ctx, w.c, n); err != nil {
			return err
		}
	}
	return nil
}

func (r *row) dropFirst() {
	for _, s := range []*samples{&r.cleave, &r.lxd, &r.runc} {
		if len(*s) > 1 {
			*s = (*s)[1:]
		}
	}
}

// exec times `true` in a running guest.
func (b *bench) exec(ctx context.Context) error {
	if err := (&row{}).turn(ctx, b.launching(), guest(0)); err != nil {
		return err
	}
	c := commands{cleave: func(g string) *exec.Cmd { return b.host.cli("exec", g, "--", "true") }}
	if b.lxd != nil {
		c.lxd = b.lxd.exec
	}
	if b.runc != nil {
		c.runc = b.runc.exec
	}
	r := row{what: "exec true", ratio: 5, about: 10 * time.Millisecond}
	for range 2*b.rounds + 1 {
		if err := r.turn(ctx, c, guest(0)); err != nil {
			return err
		}
	}
	r.dropFirst()
	table(os.Stdout, "Exec in a running guest", r)
	return (&row{}).turn(ctx, b.deleting(), guest(0))
}

// list times the table of eleven guests. That of many is a part of density.
func (b *bench) list(ctx context.Context) error {
	launch, remove := b.launching(), b.deleting()
	launch.runc, remove.runc = nil, nil
	if err := (&row{}).turns(ctx, launch, listed); err != nil {
		return err
	}
	r := row{what: fmt.Sprintf("list of %d guests", listed)}
	if err := b.timeList(ctx, &r); err != nil {
		return err
	}
	table(os.Stdout, "List", r)
	return (&row{}).turns(ctx, remove, listed)
}

func (b *bench) timeList(ctx context.Context, r *row) error {
	c := commands{cleave: func(string) *exec.Cmd { return b.host.cli("list") }}
	if b.lxd != nil {
		c.lxd = func(string) *exec.Cmd { return b.lxd.list() }
	}
	if err := r.turns(ctx, c, b.rounds+1); err != nil {
		return err
	}
	r.dropFirst()
	return nil
}
