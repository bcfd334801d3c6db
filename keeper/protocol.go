package keeper

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/cleave-project/cleave/api"
)

// The keeper outlives upgrades of the daemon, so a newer daemon must get
// along with an older keeper: both say which versions they speak, and the
// highest common one is used. Unknown fields are ignored on both sides.
const (
	protocolName  = "cleave-keeper"
	oldestVersion = 1
	newestVersion = 1
)

// hello is the first message of either side. Boot names the keeper's
// incarnation: a client holds to one, since a new keeper may not know the
// guests of the old one yet.
type hello struct {
	Protocol string     `json:"protocol"`
	Oldest   int        `json:"oldest"`
	Newest   int        `json:"newest"`
	PID      int        `json:"pid,omitempty"`
	Boot     string     `json:"boot,omitempty"`
	Error    *api.Error `json:"error,omitempty"`
}

// agree finds the version that both sides speak.
func agree(theirs hello) (int, *api.Error) {
	if theirs.Protocol != protocolName {
		return 0, api.Errorf(api.CodeInvalid, "the peer speaks %q, not %q", theirs.Protocol, protocolName)
	}
	version := min(newestVersion, theirs.Newest)
	if version < oldestVersion || version < theirs.Oldest {
		return 0, api.Errorf(api.CodeUnsupported,
			"no common version: the peer speaks %d to %d of the keeper's protocol, this side %d to %d",
			theirs.Oldest, theirs.Newest, oldestVersion, newestVersion).
			WithHint("use the keeper and the daemon of the same release")
	}
	return version, nil
}

// The operations of a request.
const (
	opStart  = "start"  // Start, with files: Exe, Cgroup if any, Files
	opSignal = "signal" // ID, Signal
	opList   = "list"   // answered by pages until More is false
	opForget = "forget" // ID
	opAdopt  = "adopt"  // Adopt
	opExits  = "exits"  // an empty reply, then one with Guest for each exit
	opAttach = "attach" // ID, Attach; after the reply frames go both ways
	opResize = "resize" // ID, Cols, Rows
	opStop   = "stop"
)

type request struct {
	Op     string         `json:"op"`
	ID     string         `json:"id,omitempty"`
	Signal int            `json:"signal,omitempty"`
	Cols   uint16         `json:"cols,omitempty"`
	Rows   uint16         `json:"rows,omitempty"`
	Start  *startMessage  `json:"start,omitempty"`
	Adopt  *AdoptRequest  `json:"adopt,omitempty"`
	Attach *AttachOptions `json:"attach,omitempty"`
}

// startMessage is a StartRequest without its files.
type startMessage struct {
	Args        []string `json:"args"`
	Env         []string `json:"env"`
	Clone       uintptr  `json:"clone"`
	UIDMap      []IDMap  `json:"uidMap,omitempty"`
	GIDMap      []IDMap  `json:"gidMap,omitempty"`
	Cgroup      bool     `json:"cgroup,omitempty"`
	CgroupProcs []string `json:"cgroupProcs,omitempty"`
	Terminal    bool     `json:"terminal,omitempty"`
	Stdin       bool     `json:"stdin,omitempty"`
	Dir         string   `json:"dir"`
	LogDir      string   `json:"logDir"`
	Owner       uint32   `json:"owner"`
}

type reply struct {
	Error  *api.Error `json:"error,omitempty"`
	Guest  *Guest     `json:"guest,omitempty"`
	Guests []Guest    `json:"guests,omitempty"`
	More   bool       `json:"more,omitempty"`
	// LogEnd is how much of the last of the log files that come with the
	// reply was written before what the frames bring.
	LogEnd int64 `json:"logEnd,omitempty"`
}

// After an attach both sides send frames: a type, a length of four bytes,
// big-endian, and that many bytes.
const (
	frameStdin  = 0 // to the keeper
	frameEOF    = 1 // to the keeper: no more input will come
	frameStdout = 2
	frameStderr = 3
	frameExit   = 4 // the last one: Guest as JSON
	frameError  = 5 // the last one: api.Error as JSON
)

const (
	frameHeader = 5
	maxFrame    = 128 << 10 // a terminal's replay fits
)

func appendFrame(b []byte, kind byte, data []byte) []byte {
	b = append(b, kind)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// readFrame reads one frame into buf, which it grows as needed.
func readFrame(r io.Reader, buf []byte) (kind byte, data []byte, err error) {
	var header [frameHeader]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return 0, nil, err
	}
	size := binary.BigEndian.Uint32(header[1:])
	if size > maxFrame {
		return 0, nil, fmt.Errorf("a frame of %d bytes is over the limit of %d", size, maxFrame)
	}
	if cap(buf) < int(size) {
		buf = make([]byte, size)
	}
	data = buf[:size]
	if _, err := io.ReadFull(r, data); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return header[0], data, nil
}
