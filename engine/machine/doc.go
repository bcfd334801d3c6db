// Package machine is what the engines have in common whose guests bring a
// kernel of their own: the monitor's process behind a wall (package jail),
// the disks, the control disk by which host and guest tell each other what
// must outlive the daemon (package vitals), the agent's stream, output,
// ends and records. What differs is a Monitor.
//
// The monitor is a process of the keeper with an id range, namespaces, a
// cgroup and descriptors of its own, so that a guest that breaks out of it
// lands in a container's wall. Its standard output and error are the guest's:
// those of the entry point, or on a terminal the serial console.
//
// A guest made of an image boots the host's kernel with our initramfs (package
// kernel); package boot is what runs in it. A system of its own boots by
// firmware from the root disk and may have an agent or not.
package machine
