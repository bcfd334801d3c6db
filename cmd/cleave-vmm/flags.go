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

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/vmm"
	"github.com/cleave-project/cleave/vmm/control"
)

const usage = `Usage: cleave-vmm --kernel FILE [--initrd FILE] [--disk FILE]... [--net TAP]... [options]
       cleave-vmm --restore DIRECTORY... [--disk FILE]... [--net TAP]... [options]
       cleave-vmm --incoming PLACE [--disk FILE]... [--net TAP]... [options]
       cleave-vmm control SOCKET REQUEST [arguments]
       cleave-vmm pages SOCKET DIRECTORY...

Runs one virtual machine. Each FILE, TAP and SOCKET may be fd=N, which is
inherited.

  --memory SIZE[,max=SIZE][,hugepages=2M]                  its memory at the start, and how much it
                                                           may get while it runs; in pages of 2 MiB
  --disk FILE[,format=qcow2][,name=N][,readonly][,queues=N][,serial=S][,mirror][,changes=FILE]
                                                           disk: a raw file, a partition, or a
                                                           qcow2 image; with mirror, it is written
                                                           over with what the guest that comes has
                                                           on its own; with changes, which of its
                                                           blocks were changed since a mark is kept
                                                           in a file (control SOCKET mark-disk)
  --net TAP[,name=N][,mac=M][,queues=N]                    tap device; a guest that is restored keeps
                                                           the address that it had
  --port FILE,name=N                                       line to programs in the guest: a socket
                                                           that listens, or a file
  --pmem FILE[,name=N]                                     file in its memory, to be read only
  --vsock cid=N,socket=PATH                                sockets: what listens at PATH_P is port
                                                           P of the host, and who connects to PATH
                                                           and says "CONNECT P" is at port P of
                                                           the guest
  --incoming PLACE[,tls=DIR][,peer=NAME]                   a guest of the same make comes from another
                                                           cleave-vmm, to HOST:PORT with the
                                                           certificates in DIR (cert.pem, key.pem,
                                                           ca.pem), or to a unix socket (a path)
  --restore fd=N:fd=N                                      a snapshot's state and memory
  --pages SOCKET                                           of a snapshot that is restored the state
                                                           alone is read (fd=N): its memory is
                                                           elsewhere, and "cleave-vmm pages" brings it

`

// parse makes of a command line what it names, opened.
func parse(args []string) (s *spec, jail bool, err error) {
	flags := flag.NewFlagSet("cleave-vmm", flag.ExitOnError)
	flags.Usage = func() { fmt.Fprint(flags.Output(), usage); flags.PrintDefaults() }
	s = &spec{}
	var disks, nets, ports, pmem, restore list
	kernel := flags.String("kernel", "", "bzImage, ELF with an entry for PVH, or Multiboot image")
	initrd := flags.String("initrd", "", "initramfs")
	flags.StringVar(&s.Command, "command", "console=ttyS0", "kernel command line")
	memory := flags.String("memory", "512MiB", "size of its memory")
	sockets := flags.String("vsock", "", "its sockets")
	flags.IntVar(&s.CPUs, "cpus", 1, "how many processors it has")
	flags.StringVar(&s.CPU, "cpu", vmm.BaselineHost, "what they are: host, x86-64-v2 or x86-64-v3")
	flags.Var(&disks, "disk", "a disk; may be repeated")
	flags.Var(&nets, "net", "a port; may be repeated")
	flags.Var(&ports, "port", "a console port; may be repeated")
	flags.Var(&pmem, "pmem", "a file in its memory; may be repeated")
	console := flags.String("console", "", "the serial port's other end (default: the standard streams)")
	end := flags.String("end", "", "file to note in why the guest ended")
	flags.BoolVar(&s.NoReboot, "no-reboot", false, "end where the guest would start anew")
	flags.Var(&restore, "restore", "a snapshot's directory; repeated for those with changes, the oldest first")
	memories := flags.String("pages", "", "socket of \"cleave-vmm pages\", which brings the memory of what is restored")
	flags.BoolVar(&s.DirtyRing, "dirty-ring", false, "note what is written in rings: better for much memory of which little is written")
	flags.BoolVar(&s.Paused, "paused", false, "leave a restored machine paused")
	incoming := flags.String("incoming", "", "where the guest comes to from another host")
	socket := flags.String("control", "", "socket to be told what to do by")
	open := flags.Bool("no-jail", false, "leave it to others to shut the process in, but for a filter of system calls")
	_ = flags.Parse(args)
	if flags.NArg() > 0 {
		return nil, false, fmt.Errorf("%q is no option", flags.Arg(0))
	}
	if *kernel == "" && len(restore) == 0 && *incoming == "" {
		return nil, false, errors.New("there is neither a --kernel to boot nor a snapshot to --restore, nor a place for one --incoming")
	}
	if err := s.parseMemory(*memory); err != nil {
		return s, false, fmt.Errorf("--memory %s: %w", *memory, err)
	}
	if s.KVM, err = s.open("/dev/kvm", os.O_RDWR); err != nil {
		return s, false, err
	}
	if err := s.openLines(ports, *console, *end); err != nil {
		return s, false, err
	}
	for i, arg := range pmem {
		if err := s.openPmem(arg, i); err != nil {
			return s, false, fmt.Errorf("--pmem %s: %w", arg, err)
		}
	}
	if *incoming != "" {
		if err := s.openIncoming(*incoming); err != nil {
			return s, false, fmt.Errorf("--incoming %s: %w", *incoming, err)
		}
	}
	if *sockets != "" {
		if err := s.openVsock(*sockets); err != nil {
			return s, false, fmt.Errorf("--vsock %s: %w", *sockets, err)
		}
	}
	if *memories != "" {
		if err := s.openPages(*memories, restore); err != nil {
			return s, false, err
		}
		restore = nil
	}
	return s, !*open, s.openAll(*kernel, *initrd, *socket, disks, nets, restore)
}

// openAll opens what a command line names.
func (s *spec) openAll(kernel, initrd, socket string, disks, nets, restore list) (err error) {
	for _, f := range []struct {
		name string
		to   *int
	}{{kernel, &s.Kernel}, {initrd, &s.Initrd}} {
		if f.name == "" {
			continue
		}
		if *f.to, err = s.open(f.name, os.O_RDONLY); err != nil {
			return err
		}
	}
	for i, arg := range disks {
		d, f, changes, err := openDisk(arg, i)
		if err != nil {
			return fmt.Errorf("--disk %s: %w", arg, err)
		}
		if d.File = s.add(f); changes != nil {
			d.Changes = s.add(changes)
		}
		s.Disks = append(s.Disks, *d)
		if d.Mirror && s.Incoming == nil {
			return fmt.Errorf("--disk %s: there is no guest --incoming to mirror a disk of", arg)
		}
	}
	for i, arg := range nets {
		n, files, err := openNet(arg, i)
		if err != nil {
			return fmt.Errorf("--net %s: %w", arg, err)
		}
		port := netSpec{Net: *n}
		for _, f := range files {
			port.Files = append(port.Files, s.add(f))
		}
		s.Nets = append(s.Nets, port)
	}
	for _, dir := range restore {
		f, err := openSnapshot(dir, os.O_RDONLY)
		if err != nil {
			return err
		}
		s.Restore = append(s.Restore, [2]int{s.add(f.State), s.add(f.Memory)})
	}
	if socket != "" {
		f, err := listen(socket)
		if err != nil {
			return err
		}
		s.Control = s.add(f)
		if !inherited(socket) {
			s.sockets = append(s.sockets, socket)
		}
	}
	return nil
}

// open opens a file of the spec.
func (s *spec) open(name string, mode int) (int, error) {
	f, err := open(name, mode)
	if err != nil {
		return 0, err
	}
	return s.add(f), nil
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

// openDisk is a --disk, the i-th, with its file and that of its changes, if
// there is one.
func openDisk(arg string, i int) (d *diskSpec, f, changes *os.File, err error) {
	d = &diskSpec{Disk: control.Disk{Name: fmt.Sprintf("disk%d", i)}}
	record := ""
	name, err := options(arg, map[string]func(string) error{
		"name": text(&d.Name), "serial": text(&d.Serial), "format": text(&d.Format),
		"readonly": func(string) error { d.ReadOnly = true; return nil },
		"mirror":   func(string) error { d.Mirror = true; return nil },
		"queues":   func(v string) (err error) { d.Queues, err = strconv.Atoi(v); return err },
		"changes":  text(&record),
	})
	ext := filepath.Ext(name)
	switch {
	case err != nil:
		return nil, nil, nil, err
	case d.ReadOnly && d.Mirror:
		return nil, nil, nil, errors.New("what is mirrored has to be written")
	case d.ReadOnly && record != "":
		return nil, nil, nil, errors.New("nothing changes on a disk that is only read")
	case d.Format == "" && ext == ".qcow2":
		return nil, nil, nil, errors.New("its name says qcow2: say format=qcow2, or format=raw")
	}
	mode := os.O_RDWR
	if d.ReadOnly {
		mode = os.O_RDONLY
	}
	if f, err = open(name, mode); err != nil || record == "" {
		return d, f, nil, err
	}
	if changes, err = open(record, os.O_RDWR|os.O_CREATE); err != nil {
		f.Close()
	}
	return d, f, changes, err
}

// openNet is a --net, the i-th, with the queues of its tap.
func openNet(arg string, i int) (*control.Net, []*os.File, error) {
	n, queues := &control.Net{Name: fmt.Sprintf("net%d", i)}, 1
	name, err := options(arg, map[string]func(string) error{
		"name": text(&n.Name), "mac": text(&n.MAC),
		"queues": func(v string) (err error) { queues, err = strconv.Atoi(v); return err },
	})
	if err != nil {
		return nil, nil, err
	}
	if inherited(name) {
		f, err := open(name, 0)
		return n, []*os.File{f}, err
	}
	var files []*os.File
	for range max(queues, 1) {
		f, err := openTap(name, queues > 1)
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			return nil, nil, err
		}
		files = append(files, f)
	}
	return n, files, nil
}

// openTap opens a queue of a tap, with the kernel's header for offloads.
func openTap(name string, multi bool) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	r, err := unix.NewIfreq(name)
	if err == nil {
		flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		if multi {
			flags |= unix.IFF_MULTI_QUEUE
		}
		r.SetUint16(flags)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, r)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open tap %s: %w", name, err)
	}
	return f, nil
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
	return os.OpenFile(name, mode, 0o600)
}

// inherited tells whether a name is that of a file which is open already.
func inherited(name string) bool { return strings.HasPrefix(name, "fd=") }

// openLines opens what host and guest tell each other by.
func (s *spec) openLines(ports list, console, end string) error {
	for _, arg := range ports {
		p := portSpec{}
		name, err := options(arg, map[string]func(string) error{"name": text(&p.Name)})
		if err == nil && p.Name == "" {
			err = errors.New("it has no name")
		}
		if err == nil {
			p.File, err = s.open(name, os.O_RDWR)
		}
		if err != nil {
			return fmt.Errorf("--port %s: %w", arg, err)
		}
		s.Ports = append(s.Ports, p)
	}
	for _, f := range []struct {
		name string
		mode int
		to   *int
	}{{console, os.O_RDWR, &s.Console}, {end, os.O_WRONLY | os.O_CREATE | os.O_TRUNC, &s.End}} {
		if f.name == "" {
			continue
		}
		var err error
		if *f.to, err = s.open(f.name, f.mode); err != nil {
			return err
		}
	}
	return nil
}

// openSnapshot opens the two files of a snapshot.
func openSnapshot(dir string, mode int) (*vmm.Files, error) {
	if first, second, ok := strings.Cut(dir, ":"); ok && inherited(first) && inherited(second) {
		state, err := open(first, mode)
		if err != nil {
			return nil, err
		}
		memory, err := open(second, mode)
		return &vmm.Files{State: state, Memory: memory}, err
	}
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
func listen(name string) (*os.File, error) {
	if inherited(name) {
		return open(name, 0)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	l.SetUnlinkOnClose(false) // the file is another descriptor of it
	if err := os.Chmod(name, 0o600); err != nil {
		return nil, err
	}
	return l.File()
}
