// Package vmm is a virtual machine monitor over KVM for x86-64: machines
// without legacy hardware but a serial port, whose devices are virtio over
// PCI. It knows nothing of the platform; cmd/cleave-vmm makes a process of it.
//
// A Machine is put together, then runs until the guest ends it or the caller
// does. Guests are hostile: whatever one writes to memory, ports or queues,
// it harms itself at worst.
package vmm
