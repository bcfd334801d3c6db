// Package stockhost boots a host as users have them, a distribution's own
// kernel with cgroup v2 alone, under QEMU's emulation, runs one command in
// it and tells what that printed and how it ended. It needs neither KVM nor
// root nor a network; what it can't find it names.
//
// The kernel is Debian's cloud kernel, downloaded as a package and unpacked
// into a cache, never installed. The host's root is an ext4 disk made anew
// for each run: the kernel's modules, busybox, and the files that the caller
// names with the shared libraries they need. A small initramfs loads the
// disk's driver and goes on from there. Run may be called from several
// goroutines at a time.
package stockhost
