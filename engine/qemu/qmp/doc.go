// Package qmp talks the QEMU Machine Protocol (docs/interop/qmp-spec.rst of
// QEMU) with one monitor of one QEMU.
//
// The other side is a process that the guest may have taken over: a message
// is bounded in size, an unknown one is passed over, a wrong one ends the
// connection. A QEMU that answers nothing holds nobody longer than the
// context says, and Limit where it says nothing.
//
// A Client may be used by any number of goroutines. QEMU answers one command
// after the other, and has one client at a time: another one that connects to
// the same socket waits until this one is closed.
package qmp
