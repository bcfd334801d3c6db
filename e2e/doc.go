// Package e2e tests Cleave as its users meet it: the built binaries, a real
// daemon with its own data and run directory, real guests, the command line.
// After each test everything that it left on the host (processes, mounts,
// links, cgroups, loop devices) is counted and must be none.
//
// The binaries are taken from ../bin (make build). The tests need root.
package e2e
