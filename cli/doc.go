// Package cli is the command cleave: what it understands, what it prints and
// how it ends. It knows the daemon only through package client.
//
// Output for programs goes to standard output and is stable; everything said
// to people (progress, notes, errors) goes to standard error. The exit
// status is 0 when all was done, 1 when something failed, 2 when the command
// line was wrong, and the guest's own for exec, shell and run.
//
// The command starts in a few milliseconds, which is a feature: nothing here
// may do work before it is asked for, and no large package may be linked.
package cli
