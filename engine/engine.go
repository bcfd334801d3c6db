// Package engine is what every kind of wall looks like to the layers above:
// they hand over a Spec in which all names are resolved and all ids chosen,
// and never ask which engine they talk to. What an engine can't do it
// declares in its Capabilities; asking for it anyway is an api.Error with
// code "unsupported" that names what is needed.
//
// Engines are driven by one worker per instance: calls for one id don't
// overlap, except Stats, Agent, Console and Signal, which may come at any time
// from any goroutine. Every call is idempotent as far as its meaning allows:
// Clean of what is gone is no error. Start undoes everything it did when it
// fails. Nothing here needs the daemon that started a guest to be the one
// that looks after it: List tells a new daemon what lives.
package engine

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/cleave-project/cleave/api"
)

// Spec is everything an engine must know to start one guest.
type Spec struct {
	ID       string // api.Meta.ID; names cgroup, sockets, runtime directory
	Name     string
	Project  string
	Epoch    int64
	Hostname string
	System   bool // the entry point is an init system and gets the whole tree

	Image Image
	Root  Root
	Proc  Process

	UIDBase uint32 // host id of the guest's id 0; IDCount ids follow
	IDCount uint32

	Resources api.Resources
	Mounts    []Mount
	NICs      []NIC
	Hosts     string // content of /etc/hosts
	Resolv    string // content of /etc/resolv.conf
	Sysctls   map[string]string
	Ulimits   map[string]api.Ulimit
	ShmSize   api.Bytes
	Security  api.Security

	// AttachNet is called once the guest's network namespace (or process)
	// exists: it makes the host's end of every NIC and moves the guest's end
	// to the namespace of pid, named as NIC.Name, down and without address.
	// The engine then sets address and routes from inside.
	AttachNet func(ctx context.Context, pid int) error
	// Taps is AttachNet for machines: it returns a descriptor of a tap device
	// for each NIC, in their order, whose host end is in place. The devices
	// go with the last descriptor. The engine closes those it was given.
	Taps func(ctx context.Context) ([]*os.File, error)

	// Machine is for engines whose guests have a kernel of their own.
	Machine *Machine
	// Maintenance starts the guest with its agent only: the root is mounted
	// as ever, but the entry point isn't executed. Files can be moved then
	// that no process of the guest holds open.
	Maintenance bool
}

// Image is the read-only part of the root.
type Image struct {
	Digest string
	EROFS  string // path of the EROFS file on the host
}

// Root is the writable part of the root: a directory that a storage driver
// provides. For containers it holds the subdirectories "upper" and "work",
// with ids of the guest's own (not shifted). For machines it holds RootDisk, a
// raw disk of Size bytes: an ext4 with those two directories, or the disk of
// a system of its own. The engine makes what is missing on first start.
type Root struct {
	Dir      string
	Size     api.Bytes // of the disk; machines only
	ReadOnly bool
}

// Process is the guest's entry point.
type Process struct {
	Args    []string // never empty
	Env     []string // KEY=VALUE
	User    string   // resolved inside the guest
	WorkDir string
	TTY     bool
	Stdin   bool
}

// Mount is one volume or host directory in the guest.
type Mount struct {
	Source   string // directory or file on the host
	Target   string // absolute, resolved inside the guest's root only
	ReadOnly bool
	// Owned trees hold the guest's own ids (volumes); the others are mapped
	// one to one onto the guest's ids by an idmapped mount too, so host id 0
	// is the guest's 0.
	Owned bool
	// Disk says that Source is a directory which holds VolumeDisk, a raw disk
	// of Size bytes with an ext4 that the engine makes on first use: a volume
	// for machines. Containers refuse it.
	Disk bool
	Size api.Bytes
}

// NIC is a port as the guest sees it.
type NIC struct {
	Name     string // eth0
	MAC      net.HardwareAddr
	MTU      int
	IPv4     netip.Prefix // zero for none
	IPv6     netip.Prefix
	Gateway4 netip.Addr
	Gateway6 netip.Addr
}

// Guest is a guest that has processes, or had them and waits for Clean.
type Guest struct {
	ID      string
	PID     int // of the first process, in the host's PID namespace
	Started time.Time
	Running bool
	Exit    *api.ExitStatus // when not Running
	Ended   time.Time
	// Lost says what could not be kept when the keeper was replaced.
	Lost []string
	// Upkeep says that it was started with Spec.Maintenance.
	Upkeep bool
	// Engine is the name of the guest's own engine where several build walls
	// of a kind; else empty.
	Engine string
}

// Exit is the end of a guest.
type Exit struct {
	ID     string
	Status api.ExitStatus
	Time   time.Time
}

// Capabilities tell what an engine can do on this host.
type Capabilities struct {
	Available bool
	Pause     bool
	Resize    bool // Update of a running guest
	// WriteLimits tells that limits of disk writes hold; others always do.
	WriteLimits bool
	HostPath    bool // mounts of host directories
	Trees       bool // volumes that are file trees
	Disks       bool // volumes that are disks
	Firmware    bool // systems of their own: disks, installers, BIOS and UEFI
	Display     bool // the engine is a Display
	Plug        bool // the engine is a Plugger
	Save        bool // the engine is a Saver
	Track       bool // the engine is a Tracker
	TPM         bool
	Archs       []string // of guests, as Go names them; the host's first
	// MinMemory is less than which no guest comes up with; 0 if there is no
	// such bound.
	MinMemory api.Bytes
	// MinMemoryOf is that of guests of architectures that need more.
	MinMemoryOf map[string]api.Bytes
	// MaxCPUs is how many virtual CPUs a guest can have; 0 if the host sets
	// the bound.
	MaxCPUs int
	// Reason says what is missing when Available is false.
	Reason *api.Error
}

// LeastMemory is less than which no guest of an architecture comes up with; 0
// if there is no such bound.
func (c Capabilities) LeastMemory(arch string) api.Bytes {
	return max(c.MinMemory, c.MinMemoryOf[arch])
}

// Engine builds one kind of wall.
type Engine interface {
	Name() string
	Kind() api.Kind
	// Probe measures what this host can do. It may take some 100 ms and is
	// called at start and by the doctor.
	Probe(ctx context.Context) (Capabilities, []api.Finding)
	// Start returns when the entry point has been executed, or with the
	// reason why not and nothing left behind.
	Start(ctx context.Context, spec *Spec) (*Guest, error)
	// Signal sends to the entry point; SIGKILL kills everything in the guest.
	Signal(ctx context.Context, id string, signal string) error
	Pause(ctx context.Context, id string) error
	Resume(ctx context.Context, id string) error
	// Update changes limits of a running guest, all or nothing. root is the
	// directory of its root volume (for I/O limits).
	Update(ctx context.Context, id string, r api.Resources, root string) error
	// Stats fills CPU, memory, pids, I/O and pressure.
	Stats(ctx context.Context, id string) (api.Stats, error)
	// Agent opens a byte stream to the guest's agent (package agent speaks
	// its protocol on it).
	Agent(ctx context.Context, id string) (net.Conn, error)
	// Console attaches to the entry point's standard streams or terminal.
	Console(ctx context.Context, id string, opts ConsoleOptions) (Console, error)
	// LogDir is where the entry point's output is kept (package keeper reads it).
	LogDir(id string) string
	// Clean removes what a guest that has ended left on the host: processes,
	// cgroup, runtime files, and the keeper's record. Logs stay until Forget.
	Clean(ctx context.Context, id string) error
	// Forget removes logs and everything else named after id.
	Forget(ctx context.Context, id string) error
	// List finds the guests that exist, whoever started them.
	List(ctx context.Context) ([]Guest, error)
	// Exits delivers every end exactly once per daemon; the channel is closed
	// by Close. An end that came while no daemon ran shows in List.
	Exits() <-chan Exit
	Close() error
}

// ConsoleOptions choose what Console attaches.
type ConsoleOptions struct {
	Stdin bool
	// Replay delivers what the terminal showed before, as far as kept.
	Replay bool
}

// Console is a live attachment to a guest's standard streams. With a
// terminal everything comes on Stdout. Close detaches and leaves the guest.
type Console interface {
	Stdin() io.WriteCloser // nil when not asked for
	Stdout() io.Reader
	Stderr() io.Reader // nil with a terminal
	Resize(cols, rows uint16) error
	// Exit waits until the guest has ended and says how. Output that came
	// before the end is on Stdout and Stderr, which then reach io.EOF.
	Exit(ctx context.Context) (api.ExitStatus, error)
	Close() error
}
