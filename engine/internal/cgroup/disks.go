package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// BlockDevices are the whole disks below a directory, as MAJOR:MINOR: those
// of its file system, and of the file below if one is a loop device. What has
// no block device, like a network file system, has none.
func BlockDevices(dir string) []string {
	var out []string
	seen := map[uint64]bool{}
	var add func(dev uint64)
	add = func(dev uint64) {
		if seen[dev] || unix.Major(dev) == 0 {
			return
		}
		seen[dev] = true
		name, sys := wholeDisk(dev)
		out = append(out, name)
		if b, err := os.ReadFile(filepath.Join(sys, "loop/backing_file")); err == nil {
			for _, d := range devicesOf(strings.TrimSpace(string(b))) {
				add(d)
			}
		}
	}
	for _, d := range devicesOf(dir) {
		add(d)
	}
	return out
}

// wholeDisk is the disk that a device is, or is a partition of, since the
// kernel limits disks only; and its directory in sysfs.
func wholeDisk(dev uint64) (name, sys string) {
	name = fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev))
	sys = filepath.Join("/sys/dev/block", name)
	if _, err := os.Stat(filepath.Join(sys, "partition")); err != nil {
		return name, sys
	}
	real, err := filepath.EvalSymlinks(sys)
	if err != nil {
		return name, sys
	}
	parent := filepath.Dir(real)
	if b, err := os.ReadFile(filepath.Join(parent, "dev")); err == nil {
		return strings.TrimSpace(string(b)), parent
	}
	return name, sys
}

// devicesOf are the devices of the file system that holds path. A btrfs has
// an invented device number, and is asked.
func devicesOf(path string) []uint64 {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil
	}
	if unix.Major(st.Dev) != 0 {
		return []uint64{st.Dev}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	// struct btrfs_ioctl_fs_info_args begins with max_id, and
	// btrfs_ioctl_dev_info_args with devid, its path being the last 1024
	// bytes (linux/btrfs.h).
	var info [1024]byte
	if ioctl(f, btrfsFSInfo, unsafe.Pointer(&info)) != nil {
		return nil
	}
	var devs []uint64
	for id := range *(*uint64)(unsafe.Pointer(&info)) {
		var dev [4096]byte
		*(*uint64)(unsafe.Pointer(&dev)) = id + 1
		if ioctl(f, btrfsDevInfo, unsafe.Pointer(&dev)) != nil {
			continue
		}
		if err := unix.Stat(unix.ByteSliceToString(dev[3072:]), &st); err == nil {
			devs = append(devs, st.Rdev)
		}
	}
	return devs
}

// _IOR(0x94, 31, 1024 bytes) and _IOWR(0x94, 30, 4096 bytes).
const (
	btrfsFSInfo  = 0x8400941f
	btrfsDevInfo = 0xd000941e
)

func ioctl(f *os.File, req uintptr, arg unsafe.Pointer) error {
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), req, uintptr(arg)); e != 0 {
		return e
	}
	return nil
}
