package qemu

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine/machine"
)

// host is what a command line depends on beside the plan.
type host struct {
	program  string // path of QEMU
	arch     arch
	accel    string // kvm or tcg
	tsc      int    // kHz, 0 if it isn't needed
	firmware *firmware
}

// given are the files that a QEMU gets beside those of the plan, and has for
// itself.
type given struct {
	monitor *os.File // listening sockets by which it is reached
	agent   *os.File
	guest   *os.File // of QEMU's own guest agent
	end     *os.File // where it notes why it ends
	kernel  *os.File
	initrd  *os.File
}

// Sizes of what QEMU takes beside the guest's RAM.
const (
	// ownMemory is for everything else: libraries, device state, threads that
	// read and write, firmware.
	ownMemory = 96 * api.MiB
	// ownScreen is for a screen and those who look at it.
	ownScreen = 64 * api.MiB
)

// translated is the room for translated code, of which QEMU would take up to an
// eighth of the host's memory, and never gives any back. An application's
// guest fills 60 MiB by its boot alone, of which it needs little again: with
// 32 it has all translated anew once, which takes 6 % of a boot's time, and 2 %
// of that of a script of dpkg, perl, bash and gzip. CPUs share it in parts.
func translated(p *machine.Plan) api.Bytes {
	if ownSystem(p) {
		return 128 * api.MiB
	}
	return 32*api.MiB + 8*api.MiB*api.Bytes(p.Machine.CPUs-1)
}

// ownSystem tells whether the guest is a system, whose programs are many.
func ownSystem(p *machine.Plan) bool {
	return p.Spec.System || p.Spec.Machine.Firmware.Type != ""
}

// restoreFD is the descriptor of the file with the guest's memory, if it goes
// on from one: the first.
const restoreFD = 4

// newCommand makes the command for a plan: of it and of h alone.
func newCommand(p *machine.Plan, h host, s given) *machine.Command {
	c := &commandLine{Command: &machine.Command{
		Exe: h.program, Overhead: ownMemory,
		// An arena of malloc(3) for each thread holds 1.5 MiB more.
		Env: []string{"MALLOC_ARENA_MAX=1"},
	}}
	c.add(filepath.Base(h.program))
	if p.Restore != nil {
		c.File(p.Restore)
		c.add("-incoming", "defer")
	}
	c.add("-name", options("guest="+strings.ReplaceAll(p.Name, ",", ",,")),
		"-nodefaults", "-no-user-config", "-display", "none",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
	if s.end != nil {
		c.add("-D", fmt.Sprintf("/proc/self/fd/%d", c.Give(s.end)), "-trace", "qemu_system_shutdown_request")
	}
	c.machine(p, h)
	c.pace(p.Spec.Resources)
	c.listen("monitor", s.monitor)
	c.add("-mon", "chardev=monitor,mode=control")
	c.device("virtio-serial-pci", "id", "serial", "max_ports", "8")
	c.listen(agentPort, s.agent)
	c.device("virtserialport", "id", portOf(agentPort), "chardev", agentPort, "name", "org.cleave.agent")
	c.streams(p, s)
	if h.firmware == nil {
		c.direct(p, h, s)
	} else {
		c.ownSystem(p, h.firmware)
	}
	c.network(p, h)
	c.device("virtio-rng-pci")
	c.device("virtio-balloon-pci", "id", "balloon", "free-page-reporting", "on", "deflate-on-oom", "on")
	return c.Command
}

// machine adds board, CPUs and memory.
func (c *commandLine) machine(p *machine.Plan, h host) {
	m := p.Spec.Machine
	board := h.arch.machine
	cpus := fmt.Sprint(m.CPUs)
	if h.firmware != nil {
		board = h.firmware.board()
		cpus = fmt.Sprintf("%d,maxcpus=%d", m.CPUs, max(m.CPUs, h.firmware.maxCPUs))
		c.Overhead += ownScreen
	}
	c.add("-machine", board)
	if h.accel == "kvm" {
		c.add("-accel", "kvm", "-cpu", "host")
		c.Devices = append(c.Devices, "kvm")
	} else {
		room := translated(p)
		c.add("-accel", fmt.Sprintf("tcg,tb-size=%d", room/api.MiB), "-cpu", h.arch.cpu)
		c.Overhead += room
	}
	c.add("-smp", cpus, "-m", fmt.Sprintf("%dM", m.Memory/api.MiB))
}

// streams adds the serial console and, for an entry point of ours, the ports
// by which its output comes.
func (c *commandLine) streams(p *machine.Plan, s given) {
	port := func(name string) {
		c.device("virtserialport", "chardev", name, "name", "org.cleave."+name)
	}
	switch {
	case ownSystem(p):
		// A terminal's whole self: a plain file would leave its line
		// discipline on.
		c.add("-chardev", options("serial", "id", "console", "path", c.path(c.Std(0, os.O_RDWR), "")))
		if s.guest != nil {
			c.listen(guestPort, s.guest)
			c.device("virtserialport", "id", portOf(guestPort), "chardev", guestPort, "name", "org.qemu.guest_agent.0")
		}
	case p.Proc.TTY:
		c.add("-chardev", options("serial", "id", "terminal", "path", c.path(c.Std(0, os.O_RDWR), "")))
		port("terminal")
		c.output("console", c.path(c.Std(2, os.O_WRONLY), ""))
	default:
		stderr := c.path(c.Std(2, os.O_WRONLY), "")
		c.output("stdout", c.path(c.Std(1, os.O_WRONLY), ""))
		port("stdout")
		c.output("stderr", stderr)
		port("stderr")
		c.output("console", stderr)
	}
	c.add("-serial", "chardev:console")
}

// direct adds what an image boots with: a kernel that the host supplies, and
// the disks by whose names boot finds them.
func (c *commandLine) direct(p *machine.Plan, h host, s given) {
	byFD := func(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", c.Give(f)) }
	c.add("-kernel", byFD(s.kernel), "-initrd", byFD(s.initrd), "-append", kernelLine(p, h))
	if !p.Spec.System {
		// Nothing in it reboots but a kernel that panicked, which would do no
		// better the next time: least of all in a loop without enough memory.
		c.add("-no-reboot")
	}
	c.ports(4, "1f")
	disk := func(add func(string, *os.File, bool), name string, f *os.File, readOnly bool) {
		if f == nil {
			return
		}
		add(name, f, readOnly)
		c.disk(name)
	}
	disk(c.blockdev, machine.RoleImage, p.Image, true)
	disk(c.paced, machine.RoleRoot, p.Root, false)
	disk(c.blockdev, machine.RoleControl, p.Control, false)
	disk(c.blockdev, machine.RoleModules, p.Modules, true)
	for i, f := range p.Volumes {
		disk(c.paced, machine.DiskName(machine.RoleVolume, i), f, p.Mounts[i].ReadOnly)
	}
	for i, f := range p.Disks {
		disk(c.paced, p.Spec.Machine.Disks[i].ID, f, p.Spec.Machine.Disks[i].ReadOnly)
	}
}

// kernelLine is the kernel's command line. A panic resets at once. Translated code has no clock to measure the time stamp
// counter by, and waits for one forever: the kernel is told the frequency.
//
// Where the console is the entry point's standard error, only emergencies are
// written there. A panic makes it verbose by itself, if it isn't silent.
func kernelLine(p *machine.Plan, h host) string {
	level := "loglevel=4"
	if !p.Spec.System {
		level = "loglevel=1"
	}
	words := []string{"console=" + h.arch.console, "quiet", level, "panic=-1", "cleave.disks=virtio", "random.trust_cpu=on", h.arch.args}
	if h.tsc > 0 {
		words = append(words, fmt.Sprintf("tsc_early_khz=%d", h.tsc))
	}
	return strings.Join(slices.DeleteFunc(append(words, p.Spec.Machine.Kernel.Args), func(w string) bool { return w == "" }), " ")
}

// disk adds the device for the node of that name.
func (c *commandLine) disk(name string, more ...string) {
	c.device("virtio-blk-pci", append([]string{"id", diskID(name), "drive", name, "serial", name}, more...)...)
}

// Identifiers of what may be changed in a running machine.
func diskID(name string) string { return "disk-" + name }
func nicID(name string) string  { return "nic-" + name }
func portID(n int) string       { return fmt.Sprintf("port%d", n) }
func portOf(name string) string { return "to-" + name }

// The character devices of the agents: ours, and QEMU's own.
const (
	agentPort = "agent"
	guestPort = "guest"
)

// ports adds sockets for devices that come later: functions of one device,
// of which there can be eight.
func (c *commandLine) ports(n int, slot string) {
	for i := range n {
		pairs := []string{"id", portID(i), "chassis", fmt.Sprint(i + 1), "addr", fmt.Sprintf("%s.%d", slot, i)}
		if i == 0 {
			pairs = append(pairs, "multifunction", "on")
		}
		c.device("pcie-root-port", pairs...)
	}
}

// network adds the NICs. The taps have headers by which check sums and
// segmentation are left to the other end.
func (c *commandLine) network(p *machine.Plan, h host) {
	for i, n := range p.NICs {
		id := nicID(n.Name)
		more := []string{"romfile", ""}
		if i == 0 && h.firmware != nil {
			if boot := h.firmware.boot("network"); boot != nil {
				more = boot // by the program in the card's ROM
			}
		}
		c.add("-netdev", fmt.Sprintf("tap,id=%s,fd=%d", id, c.File(p.Taps[i])))
		c.device("virtio-net-pci", append([]string{"id", id, "netdev", id, "mac", n.MAC.String()}, more...)...)
	}
}
