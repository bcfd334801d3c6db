// Package uml is the engine of paravirtual machines on User Mode Linux: a
// Linux ported to Linux's own system calls, which needs no hardware support.
package uml
