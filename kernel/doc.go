// Package kernel keeps the kernels that boot images in machines, and builds
// for each an initramfs of the agent and the modules that a guest needs to
// come to its root: cached, and rebuilt when the agent or the kernel
// changed. Kernels come from a distribution's package, which is unpacked and
// not installed, from files of the host, or from the running host itself.
//
// The store is a directory with one owner:
//
//	NAME/kernel.json        what it is; written last
//	NAME/image              the bootable image, unpacked, or linux.uml
//	NAME/modules.erofs      /lib/modules/RELEASE, with the indexes of depmod(8)
//	NAME/initramfs-KEY.cpio KEY is the digest of all that it was made from
//	defaults.json           default kernels, by kind and architecture
//	.new-*                  work in progress; removed by Open
//
// A kernel gets its name when it is complete and on the disk, and a newer
// build of it takes its place in one step. Its modules are kept whole, some
// 90 MB for a distribution's: which of them a guest will load nobody knows. They
// are one file, which machines get as a disk.
//
// Packages and kernels are hostile input: their parsers believe no size that
// they read, and no path in them names a file of the host. Nothing of them is
// executed here. All methods may be called at the same time.
package kernel
