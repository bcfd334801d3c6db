// Package uml is the engine of paravirtual machines on User Mode Linux: a
// Linux ported to Linux's own system calls, which needs no hardware support.
// Its program, linux.uml, is a kernel of kind pvm (package kernel).
//
// The guest's kernel is one process, and each of the guest's is a child that
// it traces: a system call costs two switches of process, some ten times
// what it costs outside, and computation nothing. It has one CPU.
//
// Whoever is root in the guest can load modules into its kernel and so do
// what linux.uml may do. The wall around that (package jail) is the one that
// counts: an unprivileged user in namespaces of its own, without
// capabilities, under a system call filter that permits tracing besides. The
// descriptors are the guest's own disks, streams and FIFOs; in the network
// namespace are a tap and the port that it is patched to.
//
// What the guest is connected by:
//
//   - Disks are ubda, ubdb, ... in the order of machine.Plan, with serial
//     numbers.
//   - ttyS0 is the console, ttyS1 standard output or the terminal, ttyS2
//     standard error, ttyS3 the agent's. Out of the guest they carry 10 to 50
//     MB/s; into it a system call takes each byte, and a terminal that is full
//     is never heard again (link.Paced), so that 0.4 MB/s remain. What is large
//     comes to the agent by the control disk (link.HatchWriter), at 4 MB/s for
//     files of 10 KiB and 24 for large ones.
//   - Interfaces are taps that it opens by name (Wire).
//   - The management console (package mconsole) changes its memory.
//
// Ends: a power-off ends the process with status 0, a panic by SIGSYS (see
// Ended), anything else is a crash. A reboot stays in the process.
package uml
