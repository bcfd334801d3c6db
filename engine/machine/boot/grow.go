package boot

import (
	"encoding/binary"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/engine/internal/mountfd"
)

// resizeFS is EXT4_IOC_RESIZE_FS of include/uapi/linux/ext4.h: the file system
// grows, mounted as it is, to so many blocks.
const resizeFS = 1<<30 | 8<<16 | 'f'<<8 | 16

// grow has a mounted ext4 use all of its disk, which may have become larger.
func grow(dev string) error {
	blocks, has, err := ext4Blocks(dev)
	if err != nil || blocks <= has {
		return err
	}
	// Another mount of the same: where it is mounted may be out of sight.
	f, err := mountfd.New("ext4").String("source", dev).Mount(unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return fmt.Errorf("grow the file system on %s: %w", dev, err)
	}
	defer f.Close()
	root, err := unix.Openat(int(f.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("grow the file system on %s: %w", dev, err)
	}
	defer unix.Close(root)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(root), resizeFS, uintptr(unsafe.Pointer(&blocks))); errno != 0 {
		return fmt.Errorf("grow the file system on %s to %d blocks: %w", dev, blocks, errno)
	}
	return nil
}

// ext4Blocks are how many blocks a disk has room for, and how many the file
// system on it has (Documentation/filesystems/ext4/super.rst).
func ext4Blocks(dev string) (room, has uint64, err error) {
	d, err := os.Open(dev)
	if err != nil {
		return 0, 0, err
	}
	defer d.Close()
	var size uint64
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, d.Fd(), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&size))); errno != 0 {
		return 0, 0, fmt.Errorf("size of %s: %w", dev, errno)
	}
	var sb [1024]byte
	if _, err := d.ReadAt(sb[:], 1024); err != nil {
		return 0, 0, fmt.Errorf("read the superblock of %s: %w", dev, err)
	}
	le := binary.LittleEndian
	if le.Uint16(sb[0x38:]) != 0xef53 || le.Uint32(sb[0x18:]) > 6 {
		return 0, 0, fmt.Errorf("%s has no ext4", dev)
	}
	has = uint64(le.Uint32(sb[0x4:])) | uint64(le.Uint32(sb[0x150:]))<<32
	return size / (1024 << le.Uint32(sb[0x18:])), has, nil
}

// grown is grow for a boot, which goes on with what there is.
func grown(dev string) {
	if err := grow(dev); err != nil {
		fmt.Fprintf(os.Stderr, "cleave: %v\n", err)
	}
}
