// Package agent is the daemon's side of the protocol between the daemon and
// our process inside a guest. Package agent/wire is the protocol itself and
// package agent/guest the other side.
//
// A connection is a byte stream of any kind (a unix socket into a container,
// a serial port or vsock into a machine). Connections are opened on demand
// and an idle guest has none. One Client is one connection; it may carry any
// number of requests at once, and its methods may be called from any
// goroutine. Close ends them all.
//
// The guest is hostile: whatever comes from it is bounded in size, checked
// before the multiplexer sees it, never used as a path on the host, and never
// waited for without a context. What a guest can do is to lie about itself,
// to stop answering, and to end its own connection. A guest that stops
// reading can block the writers (Stdin, Resize, Signal, Put's source) of its
// own connection; Client.Close releases them.
package agent

import (
	"time"

	"github.com/cleave-project/cleave/api"
)

// ExecRequest is what to execute in the guest.
type ExecRequest = api.ExecRequest

// FileInfo describes a file in the guest.
type FileInfo = api.FileInfo

// Info is what a running agent says of itself.
type Info struct {
	Version int           // of the protocol
	Release string        // of the agent's binary, as far as it knows
	PID     int           // in the guest
	Uptime  time.Duration // of the agent
}
