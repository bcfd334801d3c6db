// Package kernel keeps the kernels that boot images in machines, and builds
// for each an initramfs of the agent and the modules that a guest needs to
// come to its root: cached, and rebuilt when the agent or the kernel
// changed. Kernels come from a distribution's package, which is unpacked and
// not installed, from files of the host, or from the running host itself.
package kernel
