package uml

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine/machine"
	"github.com/cleave-project/cleave/engine/machine/jail"
)

// Names in a guest's runtime directory.
const (
	agentIn  = "agent.in"  // FIFO to the guest's agent
	agentOut = "agent.out" // FIFO from it
	ownDir   = "uml"       // what linux.uml makes for itself
	replyDir = "replies"   // where answers of its management console come to
	umid     = "u"
)

// Names behind the wall for what has a path of the host's.
const (
	seenProgram = "/linux"
	seenAgain   = "/cleave-agent"
	seenOwn     = "/uml"
)

// Command implements machine.Monitor.
func (m *monitor) Command(_ context.Context, p *machine.Plan) (_ *machine.Command, err error) {
	program, err := filepath.EvalSymlinks(p.Machine.Kernel.Image)
	if err != nil {
		return nil, fmt.Errorf("find kernel %s: %w", p.Machine.Kernel.Name, err)
	}
	c := &commandLine{Command: &machine.Command{
		Exe: program,
		// A reboot executes this again, with the same arguments.
		Args: []string{seenAgain, ""},
		Env:  []string{"PATH=/usr/bin:/bin", "HOME=/tmp", "TMPDIR=/tmp"},
		Show: []string{program, m.again},
		// The guest reads the arguments in its /proc/cmdline.
		Links: map[string]string{seenProgram: program, seenAgain: m.again},
		// The guest's processes are traced children.
		Trace:    true,
		Overhead: overhead(p.Machine.Memory),
	}}
	defer func() {
		if err != nil {
			for _, f := range c.given {
				_ = f.Close()
			}
		}
	}()
	c.add(fmt.Sprintf("mem=%dM", max(1, p.Machine.Memory/api.MiB)))
	if err := c.initrd(p.Machine.Kernel.Initrd); err != nil {
		return nil, err
	}
	c.disks(p)
	if err := c.channels(p); err != nil {
		return nil, err
	}
	if err := c.console(p); err != nil {
		return nil, err
	}
	c.network(p)
	// The guest's root can mount file systems of the monitor's (hostfs), but
	// those that only try see an empty directory.
	c.add("hostfs=/proc/self/fdinfo/none")
	c.add("quiet", "loglevel="+loglevel(p), "panic=-1", "cleave.disks=ubd")
	c.add(haste(p)...)
	c.add(strings.Fields(p.Machine.Kernel.Args)...)
	c.Args[1] = jail.ArgAgain(seenProgram, c.next)
	return c.Command, nil
}

// loglevel is which of the kernel's messages come to its console. That of an
// application guest is its entry point's standard error, in which nothing
// belongs but the reason of a panic; everywhere, complaints about its own
// configuration, at level 3, would be the first lines.
func loglevel(p *machine.Plan) string {
	if p.System {
		return "3"
	}
	return "1" // a panic raises it, but not from 0
}

// haste leaves out what makes a boot slow. Debian's 6.1 takes 1.7 s to an init
// that powers off; without 512 nodes for terminals in BSD's style 1.2 s,
// without choosing the fastest way to compute RAID 6, which is a loop over
// 85 ticks of the clock, 0.4 s, and when it needn't count by more of them how
// long a loop takes, 0.25 s. It is told what is too much for any processor at
// 100 ticks a second: delays are for devices that it doesn't have. A kernel
// that hasn't chosen how to compute RAID 6 panics when a btrfs with RAID 5 or 6
// is mounted: an application has hardly the disks for that, but a system may.
func haste(p *machine.Plan) []string {
	args := []string{"pty.legacy_count=0", "lpj=60000000"}
	if !p.System && len(p.Security.AddCapabilities) == 0 {
		args = append(args, "initcall_blacklist=raid6_select_algo")
	}
	return args
}

// overhead is what linux.uml takes beside the guest's RAM: its own kernel,
// and the page tables and stubs of a process of the host for each of the
// guest's.
func overhead(ram api.Bytes) api.Bytes { return 64*api.MiB + ram/8 }

// commandLine is a Command that is being made.
type commandLine struct {
	*machine.Command
	given []*os.File // to be closed if nothing comes of it
	next  int        // the first descriptor that isn't passed on
}

// file passes on what stays the plan's.
func (c *commandLine) file(f *os.File) int { return c.pass(c.File(f)) }

func (c *commandLine) std(stream, access int) int { return c.pass(c.Std(stream, access)) }

func (c *commandLine) pass(fd int) int {
	c.next = fd + 1
	return fd
}

func (c *commandLine) add(args ...string) { c.Args = append(c.Args, args...) }

func (c *commandLine) give(f *os.File) int {
	c.given = append(c.given, f)
	return c.pass(c.Give(f))
}

func (c *commandLine) initrd(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open the initramfs: %w", err)
	}
	c.add("initrd=" + descriptor(c.give(f)))
	return nil
}

// descriptor is the path by which the monitor opens what it was given.
func descriptor(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// disks gives the guest its disks as ubda, ubdb, ..., in their order. They
// have the flag d, that there's nothing but data in them: a guest could
// write the header of a copy-on-write file, which names another file, to its
// own disk, and linux.uml would open that at the next start.
//
// They have names too, as on virtio, since Linux 6.0 (/sys/block/ubda/serial).
func (c *commandLine) disks(p *machine.Plan) {
	n := 0
	disk := func(f *os.File, readOnly bool, role string, i int) {
		if f == nil {
			return
		}
		flags := "d"
		if readOnly {
			flags = "rcd" // not locked: others have it too, QEMU among them
		}
		c.add(fmt.Sprintf("ubd%d%s=%s,,%s", n, flags, descriptor(c.file(f)), machine.DiskName(role, i)))
		n++
	}
	disk(p.Image, true, machine.RoleImage, 0)
	disk(p.Root, false, machine.RoleRoot, 0)
	disk(p.Control, false, machine.RoleControl, 0)
	disk(p.Modules, true, machine.RoleModules, 0)
	for i, f := range p.Volumes {
		disk(f, p.Mounts[i].ReadOnly, machine.RoleVolume, i)
	}
	for i, f := range p.Disks {
		disk(f, p.Machine.Disks[i].ReadOnly, machine.RoleDisk, i)
	}
}

// channels connects the guest's serial lines: ttyS0 the console, ttyS1
// standard output or the terminal, ttyS2 standard error, ttyS3 the agent.
//
// A line is raw, but for what the guest's own terminal settings do. When its
// descriptor can't take more, the guest's writers wait; 3 MB/s were measured.
// When one that it reads ends, the line hangs up and never comes back: so
// the agent's is open for writing too, in the monitor itself. Reading takes a
// system call for each byte. All of it goes on after a reboot.
func (c *commandLine) channels(p *machine.Plan) error {
	in, err := fifo(filepath.Join(p.Dir, agentIn))
	if err != nil {
		return err
	}
	inFD := c.give(in)
	out, err := fifo(filepath.Join(p.Dir, agentOut))
	if err != nil {
		return err
	}
	lines := []string{"null", "null", "null", fmt.Sprintf("fd:%d,fd:%d", inFD, c.give(out))}
	switch {
	case p.System:
		lines[0] = fmt.Sprintf("fd:%d", c.std(0, os.O_RDWR))
	case p.Proc.TTY:
		lines[0] = fmt.Sprintf("null,fd:%d", c.std(2, os.O_WRONLY))
		lines[1] = fmt.Sprintf("fd:%d", c.std(0, os.O_RDWR))
	default:
		lines[0] = fmt.Sprintf("null,fd:%d", c.std(2, os.O_WRONLY))
		lines[1] = fmt.Sprintf("null,fd:%d", c.std(1, os.O_WRONLY))
		lines[2] = fmt.Sprintf("null,fd:%d", c.std(2, os.O_WRONLY))
	}
	// Without a console called tty a panic dumps all of the kernel's log to the
	// monitor's standard output (arch/um/kernel/kmsg_dump.c).
	c.add("con=null", "con0=null", "console=tty0", "console=ttyS0", "ssl=null")
	for i, line := range lines {
		c.add(fmt.Sprintf("ssl%d=%s", i, line))
	}
	return nil
}

// fifo makes a FIFO, if it isn't there, and opens it for both ways, so that
// neither the end of a daemon nor there being none is seen in the guest.
func fifo(path string) (*os.File, error) {
	if err := unix.Mkfifo(path, 0o600); err != nil && err != unix.EEXIST {
		return nil, &os.PathError{Op: "make", Path: path, Err: err}
	}
	return os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
}

// console gives the management console its place.
func (c *commandLine) console(p *machine.Plan) error {
	own, replies := filepath.Join(p.Dir, ownDir), filepath.Join(p.Dir, replyDir)
	for _, dir := range []string{own, replies} {
		if err := os.Mkdir(dir, 0o755); err != nil && !os.IsExist(err) {
			return err
		}
	}
	owner := int(p.UIDBase) + jail.ID
	if err := os.Lchown(own, owner, owner); err != nil {
		return err
	}
	c.Write, c.Show = append(c.Write, own), append(c.Show, replies)
	c.Links[seenOwn] = own
	c.add("uml_dir="+seenOwn, "umid="+umid)
	return nil
}

// network has the guest open a tap of its own network namespace for each NIC
// (Wire). The host does checksums and segmentation (virtio headers, which
// this transport always has), and gives packets together (gro).
func (c *commandLine) network(p *machine.Plan) {
	for i, n := range p.NICs {
		c.add(fmt.Sprintf("vec%d:transport=tap,ifname=%s,mac=%s,gro=1", i, wire(i), n.MAC))
	}
	if len(p.NICs) > 0 {
		c.Devices = append(c.Devices, "net/tun")
	}
}

// wire is the name of NIC i's tap, which only the monitor sees.
func wire(i int) string { return fmt.Sprintf("wire%d", i) }
