// Package control is the small protocol by which a monitor's process is told
// what to do with its guest: over a stream socket of the host's, one JSON
// object on a line for a request, one for its reply, in order.
//
// A request is {"id": 1, "do": "add-disk", "args": {...}, "files": 1}. Its
// verb says what args are (the methods of Machine, and the types here); files
// is how many open descriptors came with its bytes (unix(7), SCM_RIGHTS),
// which is how a process that can open nothing gets disks, ports and places
// for snapshots. A reply is {"id": 1, "result": {...}} or
// {"id": 1, "error": "..."}. Fields that aren't known are refused.
//
// Server serves a Machine, and Client is one at the other end. What comes from
// a connection is bounded and checked; requests of one are handled one after
// the other, of several at a time.
package control

import (
	"context"
	"encoding/json"
	"os"
	"time"
)

// Machine is what can be told.
type Machine interface {
	Status(context.Context) (Status, error)
	Metrics(context.Context) (Metrics, error)
	// Pause and Resume stop the guest and let it go on.
	Pause(context.Context) error
	Resume(context.Context) error
	// PowerButton asks the guest to shut down, Reset starts it anew, Stop pulls
	// its plug.
	PowerButton(context.Context) error
	Reset(context.Context) error
	Stop(context.Context) error
	// AddDisk and AddNet plug a device in; a port has a file for each of its
	// queues. changes is where what of the disk was changed is kept, or nil.
	// Files are the machine's from then on, also after an error.
	AddDisk(ctx context.Context, d Disk, f, changes *os.File) error
	AddNet(context.Context, Net, []*os.File) error
	// Remove asks the guest to let go of a device, and waits for that.
	Remove(context.Context, Remove) error
	SetLimits(context.Context, SetLimits) error
	// SetMemory has the guest leave all but so many bytes to the host, or take
	// more than it had at its start.
	SetMemory(context.Context, SetMemory) error
	// ResizeDisk makes a disk in a file larger; the guest is told.
	ResizeDisk(context.Context, ResizeDisk) error
	// MarkDisk makes a mark in what is changed of a disk, Changed tells what
	// was since, a part at a time (AllChanged), and ForgetMark forgets one,
	// known or not.
	MarkDisk(context.Context, DiskMark) (DiskMark, error)
	Changed(context.Context, ChangedSince) (Changed, error)
	ForgetMark(context.Context, DiskMark) error
	// Migrate has the guest go on in another monitor, over connections to that,
	// and returns when it has, or stays. Migration tells how one goes, or went;
	// CancelMigration ends one that can be, and SettleMigration one that is
	// undecided (package migrate).
	Migrate(context.Context, Migrate, []*os.File) (Migration, error)
	Migration(context.Context) (Migration, error)
	CancelMigration(context.Context) error
	SettleMigration(context.Context, Settle) error
	// Save writes a snapshot to two empty files, which are the machine's too.
	Save(ctx context.Context, o Save, state, memory *os.File) error
}

// Status is how a machine is.
type Status struct {
	State  string `json:"state"` // running or paused
	CPUs   int    `json:"cpus"`
	Memory uint64 `json:"memory"`
	// Pluggable is how much memory it may get beside, and Plugged how much of
	// that it has.
	Pluggable uint64 `json:"pluggable,omitempty"`
	Plugged   uint64 `json:"plugged,omitempty"`

	Devices []string `json:"devices"`
	// Resets is how many times the guest was started anew.
	Resets int `json:"resets"`
}

// Metrics are those of each device, by name; which there are depends on its
// kind.
type Metrics struct {
	Devices map[string]json.RawMessage `json:"devices"`
}

// Disk is a disk to be added.
type Disk struct {
	Name     string `json:"name"`
	Serial   string `json:"serial,omitempty"`
	ReadOnly bool   `json:"readonly,omitempty"`
	Queues   int    `json:"queues,omitempty"`
	// Format is what its file is, FormatRaw if it isn't said.
	Format string `json:"format,omitempty"`
	Limits Limits `json:"limits,omitzero"`
}

// Formats of disks' files.
const (
	FormatRaw   = "raw"
	FormatQCOW2 = "qcow2"
)

// Net is a port to be added.
type Net struct {
	Name   string `json:"name"`
	MAC    string `json:"mac,omitempty"`
	Limits Limits `json:"limits,omitzero"`
}

// Limits bound a device; 0 is no limit.
type Limits struct {
	BytesPerSecond      uint64 `json:"bytes,omitempty"`
	OperationsPerSecond uint64 `json:"operations,omitempty"`
}

// Remove names a device.
type Remove struct {
	Name string `json:"name"`
	// Timeout is how long the guest has, in nanoseconds; 0 is 30 seconds.
	Timeout time.Duration `json:"timeout,omitempty"`
}

// SetLimits changes a device's limits.
type SetLimits struct {
	Name   string `json:"name"`
	Limits Limits `json:"limits"`
}

// SetMemory is how much the guest shall have.
type SetMemory struct {
	Bytes uint64 `json:"bytes"`
	// Wait is how long to wait until it has no more, in nanoseconds. A guest
	// that has then is to have what it had before.
	Wait time.Duration `json:"wait,omitempty"`
}

// ResizeDisk is how large a disk shall be.
type ResizeDisk struct {
	Name  string `json:"name"`
	Bytes uint64 `json:"bytes"`
}

// Save says what a snapshot is to hold: vmm.SaveOptions.
type Save struct {
	Changes bool `json:"changes,omitempty"`
	Track   bool `json:"track,omitempty"`
}

// request is one on the wire.
type request struct {
	ID    uint64          `json:"id"`
	Do    string          `json:"do"`
	Args  json.RawMessage `json:"args,omitempty"`
	Files int             `json:"files,omitempty"`
}

// reply is one to it.
type reply struct {
	ID     uint64          `json:"id"`
	Result json.RawMessage `json:"result,omitempty"`
	Error  string          `json:"error,omitempty"`
}

// Bounds of a request.
const (
	maxLine  = 64 << 10
	maxFiles = 8
)
