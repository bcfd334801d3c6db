// Package vmm is a virtual machine monitor over KVM for x86-64: machines
// without legacy hardware but a serial port. It knows nothing of the platform;
// cmd/cleave-vmm makes a process of it. Packages pci and virtio have what its
// devices will be made of; no machine has any yet.
//
// A Machine is put together, then runs until the guest ends it or the caller
// does. Guests are hostile: whatever one writes to memory, ports or queues,
// it harms itself at worst.
package vmm
