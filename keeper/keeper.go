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
// If the keeper itself dies, the guests live on: their standard streams are
// FIFOs with a name, which the next keeper opens again, and their agents
// listen on a socket with a name. The next keeper adopts them by pid and
// start time through a pidfd.
package keeper
