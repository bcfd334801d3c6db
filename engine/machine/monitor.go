package machine

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
)

// Monitor is what differs between engines of machines. All paths that it is
// given are the host's; the monitor's process sees none of them, only what
// Command passes in.
type Monitor interface {
	Name() string
	Kind() api.Kind
	// Probe measures what this host can do with this monitor.
	Probe(ctx context.Context) (engine.Capabilities, []api.Finding)
	// Validate refuses what this monitor can't do, before anything is made.
	Validate(spec *engine.Spec) error
	// Command says how to run the guest.
	Command(ctx context.Context, p *Plan) (*Command, error)
	// Running is called when the process runs, before the guest is said to be
	// started: the monitor can be talked to, and Restore has been done.
	Running(ctx context.Context, g *Guest) error
	// Agent opens the host's end of the agent's byte stream.
	Agent(ctx context.Context, g *Guest) (io.ReadWriteCloser, error)
	// Pause stops the guest's CPUs, Resume lets them run. With
	// errors.ErrUnsupported all of the monitor's processes are frozen instead.
	Pause(ctx context.Context, g *Guest) error
	Resume(ctx context.Context, g *Guest) error
	// PowerButton asks a system of its own to shut down; only asked where no
	// agent answers.
	PowerButton(ctx context.Context, g *Guest) error
	// Update changes what the monitor itself can (balloon, vCPUs, Paced); limits
	// of the cgroup are the caller's.
	Update(ctx context.Context, g *Guest, r api.Resources) error
	// Ended says how the guest ended as far as the monitor knows more than
	// the exit status of its process tells; an empty Reason if it doesn't.
	Ended(g *Guest) api.ExitStatus
}

// Wirer is a Monitor that finds its network in the namespace of its own
// process and not in descriptors. For it Plan.Taps is empty: once the process
// has its namespaces, and before it executes the monitor, Spec.AttachNet is
// called for the process, and then Wire.
type Wirer interface {
	Wire(ctx context.Context, p *Plan, pid int) error
}

// Teller is a Monitor that can tell more of a running guest, at once: how it
// is executed, and whether an agent other than ours answers.
type Teller interface {
	Tell(g *Guest) engine.Vitals
}

// Plan is everything that a Monitor needs to make a command line. Files are
// open and closed by the caller.
type Plan struct {
	*engine.Spec
	// Dir is the guest's runtime directory (mode 0700), of which the monitor's
	// process has nothing but what is passed to it.
	Dir string
	// Image is the EROFS, Root the root disk, Control the control disk; Image
	// and Control are nil for a system of its own.
	Image, Root, Control *os.File
	// Modules is the EROFS of the kernel's modules, read-only; nil if there is
	// none. Its disk comes right after Control.
	Modules *os.File
	// Volumes are the disks of Spec.Mounts, in their order.
	Volumes []*os.File
	// Disks are those of Spec.Machine.Disks, in their order; nil for a drive
	// without a medium.
	Disks []*os.File
	// Taps are the descriptors for Spec.NICs, in their order; none for a Wirer.
	Taps []*os.File
	// Restore is where to go on from; nil for a fresh start.
	Restore *os.File
}

// DiskName is what the guest finds a disk by: the serial number of a virtio
// disk, at most 20 bytes (virtio 1.2, 5.2.6.1).
func DiskName(role string, n int) string {
	if role != RoleVolume && role != RoleDisk {
		return role
	}
	return fmt.Sprintf("%s-%d", role, n)
}

// Roles of disks.
const (
	RoleImage   = "image"
	RoleRoot    = "root"
	RoleControl = "control"
	RoleModules = "modules"
	RoleVolume  = "volume" // of a mount, by its number
	RoleDisk    = "disk"
)

// Command is how to run a monitor behind its wall.
type Command struct {
	// Exe is the program's path on the host; the wall shows the host's /usr
	// and what the dynamic linker needs, read-only, and nothing else.
	Exe  string
	Args []string // with the program's name first
	Env  []string
	// Show are more directories of the host to show read-only.
	Show []string
	// Write are directories of the host, owned by the guest's ids, that
	// appear under the same path and can be written.
	Write []string
	// Links are names, "/name" each, that lead to what is shown (jail.Spec).
	Links map[string]string
	// Devices are nodes to be had in /dev, beside null, zero, full, random
	// and urandom: kvm.
	Devices []string
	// Trace permits ptrace(2) among the monitor's own processes.
	Trace bool
	// Overhead is what the monitor takes beside the guest's RAM, for the
	// cgroup's limit.
	Overhead api.Bytes

	// Paced tells that the monitor holds the limits of disk I/O itself; else
	// the cgroup does, where it can.
	Paced bool

	// Beside is another program behind the same wall, in an id of its own of
	// the guest's range: it is started before this one and ends with it. It
	// has no Beside itself, and its standard streams are null, null and this
	// one's standard error.
	Beside *Command

	files []passed
}

// passed is what becomes one descriptor of the monitor's process: a file, or
// one more descriptor for what its standard stream std is.
type passed struct {
	file   *os.File
	given  bool // file is closed once the process has it, or won't have it
	std    int
	access int
}

// firstFile is the number that the first of a Command's files gets.
const firstFile = 4

// File passes a file on, which stays the caller's, and returns the number of
// its descriptor in the monitor's process.
func (c *Command) File(f *os.File) int { return c.pass(passed{file: f}) }

// Give is File for a file that nobody else needs: it is closed when the
// process has been started, or could not be.
func (c *Command) Give(f *os.File) int { return c.pass(passed{file: f, given: true}) }

// Std returns the number of one more descriptor for the monitor's standard
// stream 0, 1 or 2, opened for access (os.O_WRONLY, os.O_RDWR), since programs
// insist on the access that they would have asked for: the keeper's FIFOs are
// open for both. The wall reopens the stream by /proc/self/fd before it drops
// its rights. It makes a terminal raw, too.
func (c *Command) Std(stream, access int) int {
	return c.pass(passed{std: stream, access: access})
}

func (c *Command) pass(p passed) int {
	c.files = append(c.files, p)
	return firstFile + len(c.files) - 1
}

// Guest is a running guest as a Monitor sees it. It can be made from the
// records of an earlier daemon.
type Guest struct {
	ID  string
	Dir string // runtime directory
	PID int
	// Firmware tells that it is a system of its own.
	Firmware bool
	System   bool
	Memory   api.Bytes // its RAM, as it was started
	Started  time.Time
	// Exit is how the process ended, for Ended: User Mode Linux aborts when
	// its guest's kernel panics.
	Exit api.ExitStatus
}
