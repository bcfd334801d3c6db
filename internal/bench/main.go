// Command bench measures a daemon of its own and prints what it finds as
// tables: what a user waits for, beside LXD and runc doing the same in the
// same run where those are installed, and what a host carries with many
// guests at once. `make bench` runs it; it needs root and the binaries of
// `make build`.
//
//	go run ./internal/bench                      all of it
//	go run ./internal/bench -only launch,delete  some of it
//	go run ./internal/bench -density 200         fewer guests at once
//
// Every figure of the peers comes from the run that is printed, taken in
// turns with Cleave's, because a busy host changes all of them alike: the
// ratios are what to compare. A target that is missed is printed as such and
// is no failure of the program; it fails when something doesn't work.
//
// runc takes part when it is in PATH. LXD takes part when lxc reaches an
// initialised daemon (LXD_DIR names it, as LXD itself has it); its guests are
// made of the same busybox, imported for the run, in LXD's first storage pool
// and without a network. On Debian, beside an LXD in use if there is one:
//
//	apt-get install --no-install-recommends lxd lxd-client
//	export LXD_DIR=/tmp/lxd; mkdir $LXD_DIR; lxd &
//	lxd waitready; lxd init --auto --storage-backend=dir
//
// The program installs nothing and leaves nothing on the host.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// part is one thing to measure.
type part struct {
	name string
	run  func(*bench, context.Context) error
}

// parts in the order in which they run; density comes last, when what the
// others used is free again.
var parts = []part{
	{"launch", (*bench).launch},
	{"exec", (*bench).exec},
	{"list", (*bench).list},
	{"delete", (*bench).delete},
	{"pull", (*bench).pull},
	{"machines", (*bench).machines},
	{"density", (*bench).density},
}

// bench is one run.
type bench struct {
	rounds int // of each measurement
	guests int // at once, for density
	host   *host
	lxd    *lxd  // nil if not installed
	runc   *runc // nil if not installed
}

func main() {
	b := &bench{}
	bin := flag.String("bin", "bin", "directory of Cleave's binaries")
	only := flag.String("only", "", "comma-separated parts of launch, exec, list, delete, pull, machines, density (default all)")
	peers := flag.Bool("peers", true, "measure LXD and runc too, where installed")
	flag.IntVar(&b.rounds, "n", 20, "rounds of each measurement")
	flag.IntVar(&b.guests, "density", 1000, "guests at once in the density run")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := b.main(ctx, *bin, *only, *peers)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// main measures what is wanted, between the start of a daemon and the proof
// that nothing of it is left.
func (b *bench) main(ctx context.Context, bin, only string, peers bool) (err error) {
	wanted := parts
	if only != "" {
		names := strings.Split(only, ",")
		wanted = slices.DeleteFunc(slices.Clone(parts), func(p part) bool { return !slices.Contains(names, p.name) })
		if len(wanted) != len(names) {
			return fmt.Errorf("-only %s: not all of these are parts, see -help", only)
		}
	}
	if b.rounds < 1 || b.guests < 1 {
		return errors.New("-n and -density must be at least 1")
	}
	if bin, err = filepath.Abs(bin); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "clbench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	run, unmount, err := runDir()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unmount()) }()
	if b.host, err = newHost(bin, dir, run); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, b.host.down())
		b.host.printLeft()
	}()
	if peers {
		if b.lxd, err = newLXD(ctx, bin, filepath.Join(dir, "lxd")); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, b.lxd.remove()) }()
		if b.runc, err = newRunc(bin, filepath.Join(dir, "runc")); err != nil {
			return err
		}
	}
	b.printHost(ctx)
	for _, p := range wanted {
		if err := p.run(b, ctx); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}
