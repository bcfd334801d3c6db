package main

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/vmm"
	"github.com/cleave-project/cleave/vmm/monitor"
)

const usage = `Usage: cleave-vmm --kernel FILE [--initrd FILE] [--disk FILE]... [--net TAP]... [options]
       cleave-vmm --restore DIRECTORY... [--disk FILE]... [--net TAP]... [options]
       cleave-vmm control SOCKET REQUEST [arguments]

Runs one virtual machine. Each FILE, TAP and SOCKET may be fd=N, which is
inherited.

  --disk FILE[,name=N][,readonly][,queues=N][,serial=S]   raw disk, or a partition
  --net TAP[,name=N][,mac=M]                               existing tap device

`

// parse makes of a command line what it names, opened.
func parse(args []string) (*monitor.Config, error) {
	flags := flag.NewFlagSet("cleave-vmm", flag.ExitOnError)
	flags.Usage = func() { fmt.Fprint(flags.Output(), usage); flags.PrintDefaults() }
	c := &monitor.Config{}
	var disks, restore list
	kernel := flags.String("kernel", "", "bzImage, or ELF with an entry for PVH")
	initrd := flags.String("initrd", "", "initramfs")
	flags.StringVar(&c.Command, "command", "console=ttyS0", "kernel command line")
	memory := flags.String("memory", "512MiB", "size of its memory")
	flags.IntVar(&c.CPUs, "cpus", 1, "how many processors it has")
	flags.StringVar(&c.CPU, "cpu", vmm.BaselineHost, "what they are: host, x86-64-v2 or x86-64-v3")
	flags.Var(&disks, "disk", "a disk; may be repeated")
	flags.Var(&restore, "restore", "a snapshot's directory; repeated for those with changes, the oldest first")
	flags.BoolVar(&c.Paused, "paused", false, "leave a restored machine paused")
	socket := flags.String("control", "", "socket to be told what to do by")
	_ = flags.Parse(args)
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("%q is no option", flags.Arg(0))
	}
	if *kernel == "" && len(restore) == 0 {
		return nil, errors.New("there is neither a --kernel to boot nor a snapshot to --restore")
	}
	size, err := api.ParseBytes(*memory)
	if err != nil {
		return nil, err
	}
	c.Memory = uint64(size)
	for _, f := range []struct {
		name string
		to   **os.File
	}{{*kernel, &c.Kernel}, {*initrd, &c.Initrd}} {
		if f.name == "" {
			continue
		}
		if *f.to, err = open(f.name, os.O_RDONLY); err != nil {
			return nil, err
		}
	}
	for i, d := range disks {
		disk, err := parseDisk(d, i)
		if err != nil {
			return nil, fmt.Errorf("--disk %s: %w", d, err)
		}
		c.Disks = append(c.Disks, *disk)
	}
	for _, dir := range restore {
		f, err := openSnapshot(dir, os.O_RDONLY)
		if err != nil {
			return nil, err
		}
		c.Restore = append(c.Restore, *f)
	}
	if *socket != "" {
		if c.Control, err = listen(*socket); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// list is a flag that may be repeated.
type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

// options splits "FILE,key=value,...", of which the keys are set.
func options(s string, set map[string]func(value string) error) (file string, err error) {
	parts := strings.Split(s, ",")
	for _, p := range parts[1:] {
		key, value, _ := strings.Cut(p, "=")
		f, ok := set[key]
		if !ok {
			return "", fmt.Errorf("there is no option %q", key)
		}
		if err := f(value); err != nil {
			return "", fmt.Errorf("%s: %w", key, err)
		}
	}
	return parts[0], nil
}

// text is an option's place for its value.
func text(to *string) func(string) error { return func(v string) error { *to = v; return nil } }

func parseDisk(s string, i int) (*monitor.Disk, error) {
	d := &monitor.Disk{}
	d.Name = fmt.Sprintf("disk%d", i)
	file, err := options(s, map[string]func(string) error{
		"name": text(&d.Name), "serial": text(&d.Serial),
		"readonly": func(string) error { d.ReadOnly = true; return nil },
		"queues":   func(v string) (err error) { d.Queues, err = strconv.Atoi(v); return err },
	})
	if err != nil {
		return nil, err
	}
	mode := os.O_RDWR
	if d.ReadOnly {
		mode = os.O_RDONLY
	}
	d.File, err = open(file, mode)
	return d, err
}

// open opens a file, or takes an inherited one.
func open(name string, mode int) (*os.File, error) {
	if n, ok := strings.CutPrefix(name, "fd="); ok {
		fd, err := strconv.ParseUint(n, 10, 31)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		return os.NewFile(uintptr(fd), name), nil
	}
	return os.OpenFile(name, mode, 0)
}

// openSnapshot opens the two files of a snapshot.
func openSnapshot(dir string, mode int) (*vmm.Files, error) {
	state, err := os.OpenFile(filepath.Join(dir, "state.json"), mode, 0o600)
	if err != nil {
		return nil, err
	}
	memory, err := os.OpenFile(filepath.Join(dir, "memory"), mode, 0o600)
	if err != nil {
		state.Close()
		return nil, err
	}
	return &vmm.Files{State: state, Memory: memory}, nil
}

// listen makes a socket that only this user can connect to, or takes an
// inherited one.
func listen(name string) (*net.UnixListener, error) {
	if strings.HasPrefix(name, "fd=") {
		f, err := open(name, 0)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		l, err := net.FileListener(f)
		if err != nil {
			return nil, err
		}
		u, ok := l.(*net.UnixListener)
		if !ok {
			l.Close()
			return nil, fmt.Errorf("%s is no unix socket that listens", name)
		}
		return u, nil
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(name, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}
