// Package jail is the wall around a monitor, and the first thing that runs in
// its process: out of what the host sends it builds a small root, takes no
// more descriptors along than it was told, drops every privilege, and
// executes the monitor. The host's side (Wall) and the process's side (Main)
// are both here.
//
// A monitor sees the host's programs and libraries (/usr, and what the dynamic
// linker needs), read-only; a /tmp in memory; a /dev with the devices it was
// given; a /proc of its own. It is an unprivileged user of an id range that is
// its guest's alone, in namespaces of its own with no network, without
// capabilities and ways to any, under a system call filter. What else it needs
// it has as open descriptors: whoever takes a monitor over from inside the
// guest holds that, and nothing of the host.
//
// The keeper clones the process with Files as its descriptors from 3 on, and
// with CloneFlags. Build then finishes the wall, and returns when the monitor
// has been executed, or with the reason why not.
package jail

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// Arg is the argument of this program that has it call Main.
const Arg = "jail"

// ID is the user and group id of a monitor in its range; the program beside
// it has the next one.
const ID = 1000

// FirstFile is the number of the first of a program's Files.
const FirstFile = 4

// CloneFlags give a monitor all namespaces of its own.
const CloneFlags = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET |
	unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP

// Spec is what to build and execute.
type Spec struct {
	UIDBase uint32 // host id of id 0 in the wall
	Program Program
	// Beside is started before Program, as another user and as its child,
	// and ends with it. Its standard streams are null, null and Program's
	// standard error.
	Beside *Program

	// Show are files and directories of the host to be seen read-only, beside
	// /usr, under the same path.
	Show []string
	// Write are directories of the host under the same path that can be
	// written, as far as the range's ids may.
	Write []string
	// Links are names in the root that lead to what is shown: a program whose
	// arguments its guest can read is given these and no path of the host.
	Links map[string]string
	// Devices are names in /dev to be had, beside null, zero, full, random
	// and urandom.
	Devices []string
	// Seccomp is the system call filter, a struct sock_filter array.
	Seccomp []byte
	// Tmp is how much fits in /tmp.
	Tmp api.Bytes
}

// Program is what to execute.
type Program struct {
	Exe   string   // absolute, and to be seen from inside
	Args  []string // with the program's name first
	Env   []string
	Files []File
}

// File is what becomes a descriptor of a program: FirstFile for the first.
type File struct {
	File *os.File // stays the caller's
	// Without a File it is the standard stream Std opened once more for
	// Access; a terminal is made raw.
	Std    int
	Access int
}

// message is what the process is told. Mounts travel beside it.
type message struct {
	Mounts  []string // where the mounts go; the first is the root
	Seccomp []byte
	Program program
	Beside  *program
}

// program is a Program in the process: its files are descriptors.
type program struct {
	Exe       string
	Args, Env []string
	Files     int   // descriptors from FirstFile on, or behind those of Program
	Std       []std // of them
}

type std struct{ FD, Std, Access int }
