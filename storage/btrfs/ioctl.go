package btrfs

import (
	"encoding/binary"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests and structures of include/uapi/linux/btrfs.h. All descriptors
// given to the functions below are directories of the file system; the calls
// need CAP_SYS_ADMIN in the initial user namespace.
const (
	iocNone, iocWrite, iocRead, iocBoth = 0, 1, 2, 3

	reqSync         = iocNone<<30 | 0x94<<8 | 8
	reqResize       = iocWrite<<30 | 4096<<16 | 0x94<<8 | 3
	reqTreeSearch   = iocBoth<<30 | 4096<<16 | 0x94<<8 | 17
	reqInoLookup    = iocBoth<<30 | 4096<<16 | 0x94<<8 | 18
	reqSpaceInfo    = iocBoth<<30 | 16<<16 | 0x94<<8 | 20
	reqWaitSync     = iocWrite<<30 | 8<<16 | 0x94<<8 | 22
	reqStartSync    = iocRead<<30 | 8<<16 | 0x94<<8 | 24
	reqCreateSubvol = iocWrite<<30 | 4096<<16 | 0x94<<8 | 24
	reqDevInfo      = iocBoth<<30 | 4096<<16 | 0x94<<8 | 30
	reqFSInfo       = iocRead<<30 | 1024<<16 | 0x94<<8 | 31
	reqQuotaCtl     = iocBoth<<30 | 16<<16 | 0x94<<8 | 40
	reqQgroupAssign = iocWrite<<30 | 24<<16 | 0x94<<8 | 41
	reqQgroupCreate = iocWrite<<30 | 16<<16 | 0x94<<8 | 42
	reqQgroupLimit  = iocRead<<30 | 48<<16 | 0x94<<8 | 43
	reqDestroy      = iocWrite<<30 | 4096<<16 | 0x94<<8 | 63

	quotaEnableFull   = 1
	quotaEnableSimple = 4 // Linux 6.7

	qgroupLimitMaxReferenced = 1 << 0
	noLimit                  = ^uint64(0)

	subvolByID = 1 << 4 // BTRFS_SUBVOL_SPEC_BY_ID, Linux 5.7

	rootTree        = 1   // objectid of the tree of trees
	firstFree       = 256 // inode number of a subvolume's root directory
	rootItemKey     = 132
	rootRefKey      = 156
	blockGroupData  = 1 << 0
	copiesTwo       = 1<<4 | 1<<5 | 1<<6 // RAID1, DUP, RAID10
	searchBufSize   = 4096 - 104
	searchHeaderLen = 32
)

func ioctl(dir *os.File, what string, req uintptr, arg unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), req, uintptr(arg))
	if errno != 0 {
		return fmt.Errorf("%s: %w", what, errno)
	}
	return nil
}

// volArgsV2 is struct btrfs_ioctl_vol_args_v2; a subvolume id stands in the
// first bytes of the name.
type volArgsV2 struct {
	fd      int64
	transID uint64
	flags   uint64
	_       [4]uint64
	name    [4040]byte
}

func createSubvolume(parent *os.File, name string) error {
	var a volArgsV2
	copy(a.name[:len(a.name)-1], name)
	return ioctl(parent, "create subvolume "+name, reqCreateSubvol, unsafe.Pointer(&a))
}

func destroySubvolume(parent *os.File, name string) error {
	var a volArgsV2
	copy(a.name[:len(a.name)-1], name)
	return ioctl(parent, "destroy subvolume "+name, reqDestroy, unsafe.Pointer(&a))
}

func destroySubvolumeByID(dir *os.File, id uint64) error {
	a := volArgsV2{flags: subvolByID}
	binary.NativeEndian.PutUint64(a.name[:], id)
	return ioctl(dir, fmt.Sprintf("destroy subvolume %d", id), reqDestroy, unsafe.Pointer(&a))
}

// subvolumeID is the id of the subvolume that holds dir.
func subvolumeID(dir *os.File) (uint64, error) {
	a := struct {
		tree, object uint64
		name         [4080]byte
	}{object: firstFree}
	err := ioctl(dir, "look up subvolume of "+dir.Name(), reqInoLookup, unsafe.Pointer(&a))
	return a.tree, err
}

// searchRootTree calls yield with the offset of each key (object, kind, *)
// of the tree of trees.
func searchRootTree(dir *os.File, object uint64, kind uint32, yield func(offset uint64)) error {
	// struct btrfs_ioctl_search_args: the key, then a buffer of items.
	type searchArgs struct {
		tree, minObject, maxObject, minOffset, maxOffset uint64
		minTransID, maxTransID                           uint64
		minKind, maxKind, items, _                       uint32
		_                                                [4]uint64
		buf                                              [searchBufSize]byte
	}
	next := uint64(0)
	for {
		a := searchArgs{
			tree: rootTree, minObject: object, maxObject: object, minOffset: next, maxOffset: ^uint64(0),
			maxTransID: ^uint64(0), minKind: kind, maxKind: kind, items: ^uint32(0),
		}
		if err := ioctl(dir, "search tree of subvolumes", reqTreeSearch, unsafe.Pointer(&a)); err != nil {
			return err
		}
		if a.items == 0 {
			return nil
		}
		buf := a.buf[:]
		for range a.items {
			// transid, objectid, offset (u64 each), type, len (u32 each)
			offset, size := binary.NativeEndian.Uint64(buf[16:]), binary.NativeEndian.Uint32(buf[28:])
			buf = buf[searchHeaderLen+size:]
			yield(offset)
			next = offset + 1
		}
		if next == 0 {
			return nil
		}
	}
}

// childSubvolumes lists the ids of the subvolumes directly below one.
func childSubvolumes(dir *os.File, parent uint64) (ids []uint64, err error) {
	err = searchRootTree(dir, parent, rootRefKey, func(child uint64) { ids = append(ids, child) })
	return ids, err
}

// subvolumeExists is true until the kernel's cleaner is done with a
// destroyed subvolume.
func subvolumeExists(dir *os.File, id uint64) (found bool, err error) {
	err = searchRootTree(dir, id, rootItemKey, func(uint64) { found = true })
	return found, err
}

// syncFS writes and commits everything.
func syncFS(dir *os.File) error {
	return ioctl(dir, "sync file system", reqSync, nil)
}

// startSync asks for a commit of the running transaction and returns when it
// has begun, waitSync when it has ended.
func startSync(dir *os.File) (transaction uint64, err error) {
	err = ioctl(dir, "start commit", reqStartSync, unsafe.Pointer(&transaction))
	return transaction, err
}

func waitSync(dir *os.File, transaction uint64) error {
	return ioctl(dir, "wait for commit", reqWaitSync, unsafe.Pointer(&transaction))
}

func enableQuota(dir *os.File, cmd uint64) error {
	a := struct{ cmd, status uint64 }{cmd: cmd}
	return ioctl(dir, "enable quotas", reqQuotaCtl, unsafe.Pointer(&a))
}

func createQgroup(dir *os.File, id uint64) error {
	a := struct{ create, id uint64 }{1, id}
	return ioctl(dir, "create qgroup", reqQgroupCreate, unsafe.Pointer(&a))
}

func removeQgroup(dir *os.File, id uint64) error {
	a := struct{ create, id uint64 }{0, id}
	return ioctl(dir, "remove qgroup", reqQgroupCreate, unsafe.Pointer(&a))
}

func assignQgroup(dir *os.File, member, group uint64) error {
	a := struct{ assign, member, group uint64 }{1, member, group}
	return ioctl(dir, "assign qgroup", reqQgroupAssign, unsafe.Pointer(&a))
}

// limitQgroup bounds what the group's subvolumes refer to.
func limitQgroup(dir *os.File, id, max uint64) error {
	a := struct{ id, flags, maxRef, maxExcl, rsvRef, rsvExcl uint64 }{id: id, flags: qgroupLimitMaxReferenced, maxRef: max}
	return ioctl(dir, "limit qgroup", reqQgroupLimit, unsafe.Pointer(&a))
}

// resizeToDevice lets the file system use all of its (only) device.
func resizeToDevice(dir *os.File) error {
	var a struct {
		fd   int64
		name [4088]byte
	}
	copy(a.name[:], "1:max")
	return ioctl(dir, "resize file system", reqResize, unsafe.Pointer(&a))
}

// fsUUID names the file system in /sys/fs/btrfs.
func fsUUID(dir *os.File) (string, error) {
	var a struct {
		maxID, devices uint64
		id             [16]byte
		_              [992]byte
	}
	if err := ioctl(dir, "get file system's uuid", reqFSInfo, unsafe.Pointer(&a)); err != nil {
		return "", err
	}
	u := a.id
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:]), nil
}

// deviceUse tells of the first device how many bytes it has and how many of
// them are in chunks.
func deviceUse(dir *os.File) (total, allocated uint64, err error) {
	// struct btrfs_ioctl_dev_info_args
	a := struct {
		id               uint64
		uuid             [16]byte
		allocated, total uint64
		_                [379]uint64
		path             [1024]byte
	}{id: 1}
	err = ioctl(dir, "get size of device", reqDevInfo, unsafe.Pointer(&a))
	return a.total, a.allocated, err
}

// spaceUse tells how much of the chunks is in use (counting both copies
// where there are two), and how much of the data chunks is free.
func spaceUse(dir *os.File) (used, dataFree uint64, err error) {
	// struct btrfs_ioctl_space_args, then the slots. There is one for each
	// profile of data, metadata and system, plus the global reserve.
	const slots = 16
	var a struct {
		slots, found uint64
		space        [slots]struct{ flags, total, used uint64 }
	}
	a.slots = slots
	if err := ioctl(dir, "get use of space", reqSpaceInfo, unsafe.Pointer(&a)); err != nil {
		return 0, 0, err
	}
	const globalReserve = 1 << 49
	for _, s := range a.space[:min(a.found, slots)] {
		switch {
		case s.flags&globalReserve != 0:
			continue
		case s.flags&copiesTwo != 0:
			used += 2 * s.used
		default:
			used += s.used
		}
		if s.flags&blockGroupData != 0 {
			dataFree += s.total - s.used
		}
	}
	return used, dataFree, nil
}
