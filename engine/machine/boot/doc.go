// Package boot is the first process of a machine's initramfs: it loads
// modules, finds the disks by their names, reads the control disk (package
// vitals), mounts the image and the root disk into one tree, sets up network
// and files, and becomes PID 1 of an application guest or executes the init
// of a system with the agent beside it. It writes to the control disk how far
// it came and how the entry point ended, then powers the machine off.
//
// All of it runs inside the guest and with the guest's rights only.
package boot
