// Package vmm is a virtual machine monitor over KVM for x86-64: machines with
// virtio devices on PCI, and without legacy hardware but a serial port. It
// knows nothing of the platform; package monitor makes a process of a
// machine, and docs/monitor.md tells how the parts fit together.
//
// A Machine is put together, or restored from a snapshot, then runs until the
// guest ends it or the caller does. Guests are hostile: whatever one writes to
// memory, ports or queues, it harms itself at worst. So may be snapshots.
package vmm
