// Package vmm is an engine of virtual machines by Cleave's own monitor over
// KVM (cmd/cleave-vmm): guests made of an image, on the host's architecture
// and where KVM is usable, which is measured. What else there is belongs to
// engine/qemu; Fits tells them apart. All else is engine/machine's.
package vmm
