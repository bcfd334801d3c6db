// Package client is the Go client of Cleave's API: every call of the daemon
// as a method with the types of package api, over the daemon's unix socket
// or over TLS.
//
// A Client is safe for use by several goroutines and holds nothing but idle
// connections. Every call takes a context and returns when it ends. Failures
// of the daemon are *api.Error values with the daemon's code, message and
// hint; a daemon that can't be reached is one too (unavailable, forbidden),
// so that callers switch on api.IsCode alone.
//
// Listings are iterators that fetch page after page while they are ranged
// over. Long work returns an *api.Operation at once; Wait follows it to its
// end. Streams (exec, console) are Sessions. Events and Wait outlive a
// restart of the daemon: they connect again and go on where they were.
package client
