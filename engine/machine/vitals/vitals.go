// Package vitals is the format of the control disk, by which the host and
// the first process of a machine tell each other what must not depend on any
// connection: what to boot, and how it ended. The disk is a small file of
// fixed size, written anew at each start.
//
// The guest's part is as hostile as the guest: it is bounded, checked, and
// says nothing but how that guest fares.
package vitals

import (
	"net/netip"

	"github.com/cleave-project/cleave/api"
)

// Size is the control disk's: a status sector, the boot text, and the hatch of
// the agent's line (link.HatchWriter), which only User Mode Linux uses. What
// goes through that can be anything, and is far from both ends of the disk,
// where file systems and partitions are looked for.
const (
	Size        = 3 << 20
	StatusSize  = 4 << 10 // at offset 0
	HatchOffset = 1 << 20
)

// Names of the virtio-serial ports by which a guest of QEMU finds what goes
// over them. User Mode Linux has serial lines of fixed numbers instead.
const (
	PortAgent    = "org.cleave.agent"
	PortStdout   = "org.cleave.stdout"
	PortStderr   = "org.cleave.stderr"
	PortTerminal = "org.cleave.terminal" // of an entry point with one
)

// LineAgent, ... are the devices in a guest of User Mode Linux. The one of
// standard output is that of the terminal too.
const (
	LineAgent    = "ttyS3"
	LineStdout   = "ttyS1"
	LineStderr   = "ttyS2"
	LineTerminal = LineStdout
)

// DisksArg on the kernel's command line says how disks are told apart: by
// their serial numbers (DisksVirtio) or by their order (DisksUBD).
const (
	DisksArg    = "cleave.disks="
	DisksVirtio = "virtio"
	DisksUBD    = "ubd"
)

// Boot is what the guest's first process is told.
type Boot struct {
	Hostname     string      `json:"hostname"`
	System       bool        `json:"system,omitempty"`
	Maintenance  bool        `json:"maintenance,omitempty"`
	ReadOnlyRoot bool        `json:"readOnlyRoot,omitempty"`
	Process      Process     `json:"process"`
	NICs         []NIC       `json:"nics,omitempty"`
	Hosts        string      `json:"hosts,omitempty"`
	Resolv       string      `json:"resolv,omitempty"`
	Mounts       []Mount     `json:"mounts,omitempty"`
	Sysctls      [][2]string `json:"sysctls,omitempty"` // name with slashes, value
	Limits       []Rlimit    `json:"limits,omitempty"`
	ShmSize      int64       `json:"shmSize,omitempty"`
	PIDs         int64       `json:"pids,omitempty"` // most processes and threads
	// Modules is the kernel's release when there is a disk with its modules,
	// the one after the control disk: mounted at /lib/modules/RELEASE where
	// the image has nothing there. Empty: there is no such disk.
	Modules    string `json:"modules,omitempty"`
	DropCaps   uint64 `json:"dropCaps,omitempty"`
	NoNewPrivs bool   `json:"noNewPrivs,omitempty"`
}

// Process is the entry point.
type Process struct {
	Args    []string `json:"args"`
	Env     []string `json:"env,omitempty"`
	User    string   `json:"user,omitempty"`
	WorkDir string   `json:"workDir,omitempty"`
	TTY     bool     `json:"tty,omitempty"`
	Stdin   bool     `json:"stdin,omitempty"`
}

// NIC is an interface, found by its MAC.
type NIC struct {
	Name     string         `json:"name"`
	MAC      string         `json:"mac"`
	MTU      int            `json:"mtu,omitempty"`
	Prefixes []netip.Prefix `json:"prefixes,omitempty"`
	Gateways []netip.Addr   `json:"gateways,omitempty"`
}

// Mount is a volume: a disk with an ext4.
type Mount struct {
	Disk     string `json:"disk"` // machine.DiskName
	Target   string `json:"target"`
	ReadOnly bool   `json:"readOnly,omitempty"`
}

// Rlimit is a resource limit; all bits set is unlimited.
type Rlimit struct {
	Resource   int `json:"resource"`
	Soft, Hard uint64
}

// Phase is how far the guest has come.
type Phase string

// Phases. Booting is written by the host; what a reset finds there tells the
// next boot in the same start how the one before ended.
const (
	PhaseBooting Phase = "booting"
	PhaseRunning Phase = "running" // the entry point has been executed
	PhaseEnding  Phase = "ending"  // an orderly shutdown or reboot is under way
	PhaseEnded   Phase = "ended"   // the entry point has ended, or could not be executed
)

// Status is what the guest says.
type Status struct {
	Phase Phase          `json:"phase"`
	Boots int            `json:"boots"` // since the start
	Exit  api.ExitStatus `json:"exit,omitzero"`
	Error *api.Error     `json:"error,omitempty"` // why the entry point could not be executed
}
