// Package keeper is the small long-lived process that is the parent of every
// guest process on a host, its protocol, and the client that the daemon uses.
//
// The daemon may be restarted, upgraded or killed at any time: the keeper
// goes on holding pidfds, terminals and log pipes, writes the guests' output
// to files, and remembers how each guest ended until it is told to forget.
// It is small so that cloning is cheap (a clone with a new user namespace
// copies the parent's page tables), it parses nothing that a guest sends,
// and it imports nothing large.
//
// If the keeper itself dies, the guests live on. A second, even smaller
// process, the holder, has duplicates of all descriptors whose closing a
// guest would notice, and the next keeper takes everything over from it; what
// a terminal showed before is all that is lost. If the holder died too, the
// daemon has the next keeper adopt each guest by pid and start time: output
// FIFOs have names and are opened again, terminals are lost, an open input
// has ended, and how a guest ended is known on Linux 6.15 or newer.
//
// # On the daemon's side
//
// Ensure finds or starts the keeper. Client's methods may be called from any
// goroutine. Exits delivers each end once, after the guest's output is
// complete in its log. ReadLogs reads the log files and needs no keeper.
// Errors are api.Errors; code "unavailable" means that the keeper is gone,
// and that Ensure is to be called again, with Adopt for each guest that runs.
//
// # In the keeper
//
// Nothing runs for an idle guest: one goroutine waits for all descriptors and
// starts one for each that is ready. A guest can stall who reads or writes
// its pipes, so no lock that another guest or the protocol needs is held
// meanwhile. The order of locks is server, store, then stream or
// input.writing, guest.outMu, input.mu, guest.mu, attachment.mu.
package keeper
