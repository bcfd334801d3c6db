// Package qemu is the engine of virtual machines on QEMU: any operating
// system, with KVM where it is usable and by translation anywhere else. A
// kernel that the host supplies boots on the microvm machine, a system of its
// own by firmware on q35.
package qemu
