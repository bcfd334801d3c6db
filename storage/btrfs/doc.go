// Package btrfs keeps volumes as subvolumes of a btrfs.
//
// Where Config.Source lies on a btrfs, the volumes are subvolumes below it.
// Elsewhere the pool is a file system of its own in Source/pool.btrfs, which
// is mounted at Run/NAME through a loop device. The device is released by
// the kernel with the last mount, of the pool or of a guest, so that neither
// a crash nor Close leaves one behind; after a restart the mount is found
// again by the file's device and inode number.
//
// # The loop file
//
// It begins small and grows while guests write, up to Config.Size or to what
// the disk below can spare (hostdisk.Room). Every block of it is reserved on the
// disk (fallocate) before the file system may use it, and is never given
// back by a discard: a full disk then means that the pool can't grow, which
// guests see as ENOSPC, and never that a write of the pool itself fails,
// which would turn the file system read-only for all its guests. The price
// is that the file doesn't shrink before the pool is destroyed; what deleted
// volumes held is used for new ones.
//
// The grower keeps free space ahead of the guests (headroom). A guest that
// writes more than writeRate for longer than the headroom lasts may see
// ENOSPC although the disk has room.
//
// # Limits
//
// A volume's size is a qgroup limit on what its subvolumes refer to, and
// counts metadata. A guest that reaches it gets EDQUOT. A pool in a loop
// file uses simple quotas (squota, Linux 6.7) where the kernel has them; a
// btrfs that was there before is not changed in a way that would keep older
// kernels from mounting it, so it gets simple quotas only if its owner has
// enabled them, else full ones (qgroup). Only with simple quotas a limit
// also covers subvolumes that a guest itself makes in a volume; with full
// ones the engine must keep guests from making any. Turning quotas on is
// never undone here, other users of the file system may have come to need
// them.
//
// # Durability
//
// Create, Resize and Delete return before they are on the disk; the
// committer sees to that within milliseconds. A volume that a guest has synced data in
// is on the disk, because that sync commits its creation too.
//
// All methods may be called from any goroutine; calls for one volume wait
// for each other. Open and Close must not race with each other.
package btrfs
