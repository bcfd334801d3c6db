// Package wire is the protocol between package agent (the host) and package
// agent/guest.
//
// A connection is a byte stream of any kind. It begins with a hello (see
// Greet), after which it is a yamux session in which only the host opens
// streams. A request is one stream, the control stream, followed at once by
// the 0 to 2 data streams that its header promises; the host opens them
// without another request's streams between them, so that order alone says
// what belongs together.
//
// The control stream carries messages: a 4-byte big-endian length and as
// much JSON. The first from the host is a Request, all others are Controls;
// the guest sends Replies. Data streams carry raw bytes: their end is the end
// of the stream, their flow control is yamux's, one that nobody reads holds
// up no other.
//
//	request  data streams                       replies
//	ping     -                                  Info
//	stat     -                                  File
//	exec     1: stdin and stdout, 2: stderr     Started, Exit, Done
//	         (no second one with a terminal)
//	put      1: a tar stream to the guest       Done
//	get      1: a tar stream from the guest     Started, Done
//
// Since version 2, of the guest and its entry point as a whole:
//
//	started  -                                  Done
//	signal   -                                  Done
//	resize   -                                  Done
//	input    1: its standard input              Started, StdinClosed, Done
//	metrics  -                                  Metrics
//	power    -                                  Done
//	clock    -                                  Done
//
// Since version 2, of a machine made of an image, about devices that come and
// go while it runs; an agent without them says "unsupported":
//
//	mount    -                                  Done
//	unmount  -                                  Done
//	link     -                                  Done
//	grow     -                                  Done
//
// Since version 2, of a machine under maintenance, whose root's writable
// layer (package layer) nothing uses:
//
//	layer    1: it, from the guest              Started, Done
//	relayer  1: another one, to the guest       Done
//
// Done comes after the guest has ended its data streams: whoever has it has
// all data. An Error may come in place of any reply and is the last one. When
// the host ends its side of the control stream before the last reply it has
// lost interest: the guest hangs up the command, or stops.
package wire

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/cleave-project/cleave/api"
)

// Bounds of messages. A Request holds a command and its environment, which
// the kernel bounds to a quarter of the stack's limit, usually 2 MiB.
const (
	MaxRequest = 4 << 20
	MaxReply   = 64 << 10
	MaxControl = 4 << 10
)

// What a Request asks for.
const (
	OpPing = "ping"
	OpStat = "stat"
	OpExec = "exec"
	OpPut  = "put"
	OpGet  = "get"

	OpStarted = "started"
	OpSignal  = "signal"
	OpResize  = "resize"
	OpInput   = "input"
	OpMetrics = "metrics"
	OpPower   = "power"
	OpClock   = "clock"

	OpMount   = "mount"
	OpUnmount = "unmount"
	OpLink    = "link"
	OpGrow    = "grow"

	OpLayer   = "layer"
	OpRelayer = "relayer"
)

// Request is the first message of the host on a control stream.
type Request struct {
	Op      string           `json:"op"`
	Streams int              `json:"streams,omitempty"` // data streams that follow
	Path    string           `json:"path,omitempty"`    // stat, put, get
	Exec    *api.ExecRequest `json:"exec,omitempty"`
	Signal  string           `json:"signal,omitempty"`
	Size    *Size            `json:"size,omitempty"`   // resize
	Reboot  bool             `json:"reboot,omitempty"` // power
	Time    time.Time        `json:"time,omitzero"`    // clock
	Volume  *Volume          `json:"volume,omitempty"` // mount, unmount, grow
	Link    *Link            `json:"link,omitempty"`   // link
}

// Volume is a disk with an ext4, found by its serial number, and its place.
type Volume struct {
	Disk     string `json:"disk"`
	Target   string `json:"target"`
	ReadOnly bool   `json:"readOnly,omitempty"`
}

// Link is an interface, found by its MAC, and what it is to have.
type Link struct {
	Name     string         `json:"name"`
	MAC      string         `json:"mac"`
	MTU      int            `json:"mtu,omitempty"`
	Prefixes []netip.Prefix `json:"prefixes,omitempty"`
	Gateways []netip.Addr   `json:"gateways,omitempty"`
}

// MaxStreams is how many data streams a request may have.
const MaxStreams = 2

// Control is a later message of the host.
type Control struct {
	Resize *Size  `json:"resize,omitempty"`
	Signal string `json:"signal,omitempty"`
}

// Size is that of a terminal.
type Size struct {
	Cols uint16 `json:"cols"`
	Rows uint16 `json:"rows"`
}

// Reply is a message of the guest; exactly one field is set.
type Reply struct {
	Error       *api.Error    `json:"error,omitempty"`
	Info        *Info         `json:"info,omitempty"`
	File        *api.FileInfo `json:"file,omitempty"`
	Started     bool          `json:"started,omitempty"`
	Exit        *Exit         `json:"exit,omitempty"`
	StdinClosed bool          `json:"stdinClosed,omitempty"` // nobody reads it any more
	Metrics     *Metrics      `json:"metrics,omitempty"`
	Done        bool          `json:"done,omitempty"`
}

// Metrics are what only the guest knows; sizes in bytes.
type Metrics struct {
	MemoryTotal     uint64  `json:"memoryTotal"`
	MemoryAvailable uint64  `json:"memoryAvailable"`
	Tasks           int     `json:"tasks"` // processes and threads, without the kernel's
	Load            float64 `json:"load"`  // of one minute
	DiskSize        uint64  `json:"diskSize"`
	DiskUsed        uint64  `json:"diskUsed"` // of the root
}

// Info answers a ping.
type Info struct {
	Release       string `json:"release,omitempty"`
	PID           int    `json:"pid"`
	UptimeSeconds int64  `json:"uptimeSeconds"`
}

// Exit is how a command ended: 128+n when signal n ended it.
type Exit struct {
	Code int `json:"code"`
}

// WriteMessage writes v as one message, in one Write.
func WriteMessage(w io.Writer, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	buf := make([]byte, 4, 4+len(body))
	binary.BigEndian.PutUint32(buf, uint32(len(body)))
	_, err = w.Write(append(buf, body...))
	return err
}

// ReadMessage reads one message of at most limit bytes into v. It is io.EOF
// when the stream ends before the message begins.
func ReadMessage(r io.Reader, limit int, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if uint64(n) > uint64(limit) {
		return fmt.Errorf("a message of %d bytes, where at most %d are allowed", n, limit)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("a malformed message: %w", err)
	}
	return nil
}
