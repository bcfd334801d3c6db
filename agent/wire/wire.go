// Package wire is the protocol between package agent and package agent/guest.
package wire
