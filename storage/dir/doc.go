// Package dir keeps volumes in a plain directory, on any file system.
//
// A volume is a directory below Source/volumes that holds one of two things:
//
//   - tree, a directory that is the volume's root. With project quotas
//     (ext4 mounted with prjquota, xfs with pquota) its size is the limit of a
//     project of its own. Without them only volumes without a size are kept
//     this way.
//   - disk.ext4, a file as large as the volume, with a file system of its own
//     that Path mounts at Run/NAME/ID through a loop device and Release
//     unmounts. The root is the directory tree in it, so that guests don't
//     meet lost+found.
//
// What a volume is shows in it, not in the pool: volumes stay usable when
// project quotas are turned on or off later.
//
// # Disk space
//
// With project quotas volumes take what they hold, and a guest meets EDQUOT
// or ENOSPC. A file disk.ext4 has all its blocks reserved when it is made: a
// sparse one would mean lost writes in a guest when the disk runs full, and
// a file system that turns read-only. So the sum of the sizes can't be more
// than the disk can spare (hostdisk.Room). Where the disk can't reserve (see
// Probe), that is as much of a promise as can be made.
//
// disk.ext4 can't shrink: it would have to be moved block by block with
// nothing to undo that after a power cut. While it is mounted it can
// grow if the daemon has CAP_SYS_RESOURCE, else by e2fsprogs.
//
// # Crashes
//
// A volume is made under a name that isn't listed, synced and renamed. A
// deleted one is first renamed to Source/trash. Open removes what was left
// in either state. Mounts of an earlier daemon are found again by the inode
// of the file behind their loop device.
//
// All methods may be called from any goroutine; calls for one volume wait
// for each other. Open and Close must not race with each other.
package dir
