// Package control makes desired state live. It owns the resources in the
// store, drives the engine, storage, images and network towards what the
// specs say, and records in status how far it is.
//
// Every instance has one worker at a time, so that work on one guest never
// overlaps; different guests proceed in parallel. Each step of a worker is
// idempotent and finds out for itself what is already there: after a crash
// at any point the next daemon runs the same steps again and arrives at the
// same end. What fails is tried again, the later the more often it did, and
// at once when a user asks for it or the daemon starts. What exists on the
// host without a record is removed at start.
//
// Long work is an operation: a durable record with progress and an error.
// An operation whose daemon died is taken up again when it moves an instance
// (the instance's spec says where to), and fails with a clear reason when it
// depended on the caller (a pull, a build).
//
// All exported methods of Controller may be called from any goroutine. They
// return *api.Error for everything a user can act on.
package control
