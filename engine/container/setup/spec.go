// Package setup is the first thing that runs in a new guest: it builds the
// wall from inside, out of what the host sends, before anything of the image
// is executed or trusted.
//
// The host connects to the guest's listening socket once before anybody
// else. It sends a Spec with descriptors of detached mounts, and an Entry when
// the network is there. The answer is a Report: the wall stands and the entry
// point has been executed, or the reason why not. Everything the host sends
// is trusted; everything in the image is hostile.
//
// When the wall stands, the process executes itself again: what then is PID 1
// of the guest has never had more rights than the guest, no memory and no
// descriptor of what was before, and the few threads of a fresh program. A
// system guest's init is executed in its place.
//
// What setup needs from /proc it takes from a procfs of its own, by
// descriptor, never by a path through the image.
package setup

import "net/netip"

// Spec is what to build. Mount descriptors travel beside it: the root, the
// kit, then one for each of Mounts, then the terminal's.
//
// The kit is a small file system that the host filled: dev, with the device
// nodes; cgroup, with a directory for each hierarchy; empty, to cover
// directories with; and files, which Files name.
type Spec struct {
	Hostname string
	System   bool

	ReadOnlyRoot bool
	Files        []File
	Mounts       []Mount // outer ones first
	Terminal     bool    // the standard streams are one, which comes as a mount too
	ShmSize      int64
	Cgroups      []Cgroup

	NICs    []NIC
	Sysctls [][2]string // name with slashes, value
	Limits  []Rlimit

	Capabilities uint64 // bounding set
	NoNewPrivs   bool
	Seccomp      []byte // struct sock_filter array
}

// File is a file of the kit that is mounted at an absolute path.
type File struct{ Name, Target string }

// Mount is the place of a volume.
type Mount struct {
	Target string
	Dir    bool // a directory, not a file
	// Clone is set for a volume that is in the guest's mount namespace
	// already, in the host's tree, and is to be cloned with its locked flags.
	Clone bool
}

// Cgroup is a hierarchy to mount below /sys/fs/cgroup.
type Cgroup struct {
	Name    string // directory; empty for the place itself
	V2      bool
	Options []string
	Write   bool
}

// NIC is a network interface that the host has put in the namespace.
type NIC struct {
	Name     string
	MTU      int
	Prefixes []netip.Prefix
	Gateways []netip.Addr
}

// Rlimit is a resource limit; all bits set is unlimited.
type Rlimit struct {
	Resource   int
	Soft, Hard uint64
}

// Entry is what to execute behind the finished wall.
type Entry struct {
	Process
	System bool
	// Withheld are capabilities that our process keeps for its own work, but
	// nothing that it executes gets; Surplus are what it needs to withhold
	// them, and then gives up.
	Withheld, Surplus uint64
}

// Process is the entry point.
type Process struct {
	Args    []string
	Env     []string
	User    string
	WorkDir string
	TTY     bool
}
