// Command vmm measures our monitor beside QEMU's microvm, in one host of the
// lab and one run, in turns: `make bench-vmm`. What it prints are ratios of
// that host, which may be emulated; its times are nobody else's. It needs the
// programs of `make build`, and QEMU.
//
// The host gets this program once more, which runs guests there (inside.go):
// the hosts' own kernel with an initramfs of busybox, by the same command line,
// disk and tap for both.
package main

import (
	"context"
	"debug/elf"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/lab"
	"github.com/cleave-project/cleave/lab/appliance"
)

//go:embed guest.sh
var guestScript []byte

func main() {
	rounds := flag.Int("n", 5, "rounds of each measurement")
	bin := flag.String("bin", "bin", "directory of Cleave's programs")
	here := flag.Bool("inside", false, "be the half in the host")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	var err error
	if *here {
		err = inside(ctx, *rounds)
	} else {
		err = outside(ctx, *bin, *rounds)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// outside boots a host and has it measure.
func outside(ctx context.Context, bin string, rounds int) (err error) {
	if err := lab.Check(); err != nil {
		return err
	}
	if bin, err = filepath.Abs(bin); err != nil {
		return err
	}
	tell := func(s string) { fmt.Fprintln(os.Stderr, s) }
	dir, err := os.MkdirTemp("", "clbench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	spec := lab.DefaultSpec("h1")
	spec.CPUs, spec.Memory, spec.KVM = 2, 2<<30, true
	o := appliance.Options{Tell: tell, Bin: bin}
	o.Cache, o.Dir = lab.Cache()
	if spec.Files, err = parts(ctx, dir, bin, o); err != nil {
		return err
	}
	image, err := appliance.Build(ctx, o)
	if err != nil {
		return err
	}
	defer image.Close()
	l, err := lab.New(lab.Options{Dir: filepath.Join(dir, "lab"), Image: image, Tell: tell})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	hosts, err := l.Add(spec)
	if err != nil {
		return err
	}
	if err := l.Boot(ctx, hosts...); err != nil {
		return err
	}
	c := lab.Command{Stdout: os.Stdout, Stderr: os.Stderr}
	c.ExecRequest = api.ExecRequest{Command: []string{"/lab/bench", "-inside", "-n", fmt.Sprint(rounds)}, WorkDir: "/var"}
	status, err := hosts[0].Exec(ctx, c)
	if err == nil && status != 0 {
		err = fmt.Errorf("the half in the host ended with %d", status)
	}
	return err
}

// parts are what the host is shown below /lab.
func parts(ctx context.Context, dir, bin string, o appliance.Options) (map[string]string, error) {
	own, err := os.Executable()
	if err != nil {
		return nil, err
	}
	files := map[string]string{"bench": own, "cleave-vmm": filepath.Join(bin, "cleave-vmm"), "initrd": filepath.Join(dir, "initrd")}
	if err := addQEMU(files); err != nil {
		return nil, err
	}
	busybox, err := os.ReadFile(filepath.Join(bin, "busybox"))
	if err != nil {
		return nil, err
	}
	f, err := os.Create(files["initrd"])
	if err != nil {
		return nil, err
	}
	defer f.Close()
	files["kernel"], err = o.Guest(ctx, f, map[string][]byte{"init": guestScript, "bin/busybox": busybox})
	return files, errors.Join(err, f.Close())
}

// addQEMU adds the emulator, with the libraries that it needs and the firmware
// of microvm: the hosts have none.
func addQEMU(files map[string]string) error {
	program, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		return err
	}
	files["qemu/qemu"] = program
	f, err := elf.Open(program)
	if err != nil {
		return err
	}
	f.Close()
	out, err := exec.Command("ldd", program).Output()
	if err != nil {
		return fmt.Errorf("find the libraries of %s: %w", program, err)
	}
	for _, word := range strings.Fields(string(out)) {
		if filepath.IsAbs(word) {
			files["qemu/lib/"+filepath.Base(word)] = word
		}
	}
	for _, name := range []string{"bios-microvm.bin", "linuxboot_dma.bin", "pvh.bin", "kvmvapic.bin"} {
		for _, from := range []string{"/usr/share/seabios", "/usr/share/qemu"} {
			if path, err := filepath.EvalSymlinks(filepath.Join(from, name)); err == nil {
				files["qemu/share/"+name] = path
			}
		}
	}
	return nil
}
