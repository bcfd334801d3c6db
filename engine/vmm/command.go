package vmm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine/machine"
	"github.com/cleave-project/cleave/engine/machine/vitals"
)

// overhead is what a monitor takes beside the guest's RAM: itself, and the
// kernel's page tables of the guest.
const overhead = 48 * api.MiB

// commandLine is a Command that is being made.
type commandLine struct {
	*machine.Command
	given []*os.File // to be closed if nothing comes of it
}

// Command implements machine.Monitor.
func (m *monitor) Command(_ context.Context, p *machine.Plan) (_ *machine.Command, err error) {
	program, err := filepath.EvalSymlinks(m.binary)
	if err != nil {
		return nil, fmt.Errorf("find cleave-vmm: %w", err)
	}
	c := &commandLine{Command: &machine.Command{
		Exe: program, Show: []string{program}, Devices: []string{"kvm"}, Overhead: overhead,
		Args: []string{
			"cleave-vmm", "--no-jail",
			"--cpus", fmt.Sprint(p.Machine.CPUs), "--memory", fmt.Sprint(int64(p.Machine.Memory)),
		},
	}}
	defer func() {
		if err != nil {
			for _, f := range c.given {
				f.Close()
			}
		}
	}()
	if err := c.boot(p); err != nil {
		return nil, err
	}
	if err := c.channels(p); err != nil {
		return nil, err
	}
	if err := c.disks(p); err != nil {
		return nil, err
	}
	for i, n := range p.NICs {
		c.add("--net", fmt.Sprintf("%s,name=%s,mac=%s", fd(c.File(p.Taps[i])), nicID(n.Name), n.MAC))
	}
	return c.Command, nil
}

func fd(n int) string { return fmt.Sprintf("fd=%d", n) }

func (c *commandLine) add(args ...string) { c.Args = append(c.Args, args...) }

// give passes on a file that nobody else needs.
func (c *commandLine) give(f *os.File) string {
	c.given = append(c.given, f)
	return fd(c.Give(f))
}

// boot adds the kernel, and where to go on from.
func (c *commandLine) boot(p *machine.Plan) error {
	for _, f := range []struct{ flag, path string }{{"--kernel", p.Machine.Kernel.Image}, {"--initrd", p.Machine.Kernel.Initrd}} {
		opened, err := os.Open(f.path)
		if err != nil {
			return fmt.Errorf("open what the machine boots (%s): %w", f.flag[2:], err)
		}
		c.add(f.flag, c.give(opened))
	}
	c.add("--command", kernelLine(p))
	if !p.System {
		// Nothing in it reboots but a kernel that panicked, which would do no
		// better the next time.
		c.add("--no-reboot")
	}
	if p.Restore == nil {
		return nil
	}
	state, err := savedState(p.Restore)
	if err != nil {
		return err
	}
	c.add("--restore", c.give(state)+":"+fd(c.File(p.Restore)))
	return nil
}

// channels adds what host and guest say to each other by.
func (c *commandLine) channels(p *machine.Plan) error {
	for _, s := range []struct{ name, flag, more string }{
		{controlSocket, "--control", ""}, {agentSocket, "--port", ",name=" + vitals.PortAgent},
	} {
		f, err := machine.Listen(p.Dir, s.name)
		if err != nil {
			return err
		}
		c.add(s.flag, c.give(f)+s.more)
	}
	end, err := os.OpenFile(filepath.Join(p.Dir, endFile), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	c.add("--end", c.give(end))
	port := func(name string, stream, access int) { c.add("--port", fd(c.Std(stream, access))+",name="+name) }
	console := func(stream, access int) { c.add("--console", fd(c.Std(stream, access))) }
	switch {
	case p.System:
		console(0, os.O_RDWR)
	case p.Proc.TTY:
		port(vitals.PortTerminal, 0, os.O_RDWR)
		console(2, os.O_WRONLY)
	default:
		port(vitals.PortStdout, 1, os.O_WRONLY)
		port(vitals.PortStderr, 2, os.O_WRONLY)
		console(2, os.O_WRONLY)
	}
	return nil
}

// disks adds the disks, by whose names boot finds them. Those in directories of
// volumes have a record of what is changed beside them.
func (c *commandLine) disks(p *machine.Plan) error {
	disk := func(name string, f *os.File, more string) {
		if f != nil {
			c.add("--disk", fmt.Sprintf("%s,name=%s,serial=%s%s", fd(c.File(f)), diskID(name), name, more))
		}
	}
	own := func(name string, f *os.File) error {
		record, err := openRecord(f)
		if err != nil {
			return err
		}
		disk(name, f, ",changes="+c.give(record))
		return nil
	}
	const readOnly = ",readonly"
	disk(machine.RoleImage, p.Image, readOnly)
	if err := own(machine.RoleRoot, p.Root); err != nil {
		return err
	}
	disk(machine.RoleControl, p.Control, "")
	disk(machine.RoleModules, p.Modules, readOnly)
	for i, f := range p.Volumes {
		name := machine.DiskName(machine.RoleVolume, i)
		if p.Mounts[i].ReadOnly {
			disk(name, f, readOnly)
		} else if err := own(name, f); err != nil {
			return err
		}
	}
	for i, f := range p.Disks {
		more := ""
		if p.Machine.Disks[i].ReadOnly {
			more = readOnly
		}
		disk(p.Machine.Disks[i].ID, f, more)
	}
	return nil
}

// kernelLine is the kernel's command line. A panic resets at once. One serial
// port is there, not the 32 that Debian's kernel looks for.
//
// Where the console is the entry point's standard error, only emergencies are
// written there. A panic makes it verbose by itself, if it isn't silent.
func kernelLine(p *machine.Plan) string {
	level := "loglevel=4"
	if !p.System {
		level = "loglevel=1"
	}
	words := []string{
		"console=ttyS0", "quiet", level, "panic=-1", vitals.DisksArg + vitals.DisksVirtio, "random.trust_cpu=on",
		"8250.nr_uarts=1", "no_timer_check", "cryptomgr.notests", p.Machine.Kernel.Args,
	}
	return strings.Join(slices.DeleteFunc(words, func(w string) bool { return w == "" }), " ")
}

// Names of devices that may be changed in a running machine. Those that were
// not there at the start have plugged before them.
const plugged = "plugged-"

func diskID(name string) string { return "disk-" + name }
func nicID(name string) string  { return "nic-" + name }
