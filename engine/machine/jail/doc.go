// Package jail is the first thing that runs in a monitor's process: out of
// what the host sends it builds a small root, takes no more descriptors
// along than it was told, drops every privilege, and executes the monitor.
// The host's side and the process's side are both here.
package jail
