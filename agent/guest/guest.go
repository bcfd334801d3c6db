// Package guest is the side of the agent that lives inside a guest.
package guest

import "net"

// Process is the guest's entry point.
type Process struct {
	Args    []string // never empty
	Env     []string // KEY=VALUE
	User    string   // USER or UID, with :GROUP or :GID; resolved in the guest
	WorkDir string   // "/" if empty
	TTY     bool     // descriptors 0 to 2 are a terminal
}

// Serve answers on l until l is closed; for an agent that runs beside the
// guest's own init. Commands get the agent's own environment as base.
func Serve(l net.Listener) error { return nil }

// Init is PID 1 of an application guest: it starts p, calls started once
// with nil or with why it could not be started, serves the agent's protocol
// on l (if not nil), reaps, forwards signals, and returns the exit status as soon as p's
// process has ended (128+n when signal n ended it).
func Init(p Process, l net.Listener, started func(error)) (exitCode int) { return 0 }
