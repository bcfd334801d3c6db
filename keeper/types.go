package keeper

import (
	"os"
	"time"

	"github.com/cleave-project/cleave/api"
)

// IDMap maps Count ids of a new user namespace onto the host's.
type IDMap struct{ Inside, Outside, Count uint32 }

// StartRequest is a process to clone. The open files in it stay the caller's.
type StartRequest struct {
	ID        string
	Args, Env []string
	// Exe is executed by descriptor, so that nothing in the guest has a path
	// to it.
	Exe *os.File
	// Files become descriptors 3, 4, ... of the child; nothing else but the
	// standard streams is inherited.
	Files []*os.File
	Clone uintptr // CLONE_NEW* flags

	UIDMap, GIDMap []IDMap
	// Cgroup is a cgroup v2 directory that the child is born in, or nil.
	Cgroup *os.File
	// CgroupProcs are cgroup v1 cgroup.procs files; the child is born in all
	// of them. The keeper's cloning thread passes through, so they must not
	// be frozen, and a tight CPU quota is better set after Start.
	CgroupProcs []string

	// Terminal gives the child a terminal as standard streams, its
	// controlling one. Without it they are FIFOs; standard input is
	// /dev/null unless Stdin is set.
	Terminal, Stdin bool
	Dir             string // runtime directory of the guest, for the FIFOs
	LogDir          string // made if absent
	Owner           uint32 // host uid and gid of the guest's root: owns FIFOs and terminal
}

// Guest is a process that the keeper looks after, or that has ended and whose
// end has not been forgotten.
type Guest struct {
	ID        string    `json:"id"`
	PID       int       `json:"pid"`
	StartTime uint64    `json:"startTime"` // /proc/PID/stat field 22: ticks since boot
	Started   time.Time `json:"started"`
	Exited    bool      `json:"exited,omitempty"`
	// ExitCode is the exit status, or 128 plus the signal's number; -1 when
	// ExitKnown is false.
	ExitCode  int       `json:"exitCode,omitempty"`
	Signal    string    `json:"signal,omitempty"` // like SIGKILL
	ExitKnown bool      `json:"exitKnown,omitempty"`
	Ended     time.Time `json:"ended,omitzero"`
	Terminal  bool      `json:"terminal,omitempty"`
	// Lost says what the death of a keeper took.
	Lost []string `json:"lost,omitempty"`
}

// Exit is how a guest that has exited did so.
func (g Guest) Exit() api.ExitStatus {
	return api.ExitStatus{Code: g.ExitCode, Signal: g.Signal}
}

// AdoptRequest names a guest that an earlier keeper started.
type AdoptRequest struct {
	ID        string `json:"id"`
	PID       int    `json:"pid"`
	StartTime uint64 `json:"startTime"`
	Dir       string `json:"dir"`
	LogDir    string `json:"logDir"`
	Terminal  bool   `json:"terminal,omitempty"`
}

// AttachOptions choose what Attach connects.
type AttachOptions struct {
	Stdin bool
	// Replay delivers earlier output first: what the log files hold, or the
	// last 64 KiB of a terminal.
	Replay bool
}

// LogEntry is a line of a guest's output, or a part of one: the Data of all
// entries of a stream, put together, is what the guest wrote.
type LogEntry struct {
	Time   time.Time `json:"time"`
	Stream string    `json:"stream"` // stdout, stderr, or keeper for a remark about lost output
	Data   []byte    `json:"data"`
}

// LogOptions choose what ReadLogs yields.
type LogOptions struct {
	Since  time.Time // entries at or after it; all if zero
	Follow bool      // go on with what comes until the context or Ended ends it
	Tail   int       // of what is there, the last lines only; all if 0
	// Ended, when closed, ends a Follow after what the files hold by then.
	Ended <-chan struct{}
}
