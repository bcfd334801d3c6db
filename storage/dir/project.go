package dir

import (
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// From include/uapi/linux/{fs,quota,dqblk_xfs}.h.
const (
	reqGetXattr = 2<<30 | 28<<16 | 'X'<<8 | 31 // FS_IOC_FSGETXATTR
	reqSetXattr = 1<<30 | 28<<16 | 'X'<<8 | 32 // FS_IOC_FSSETXATTR
	flagInherit = 0x200                        // FS_XFLAG_PROJINHERIT

	projectQuota  = 2                       // PRJQUOTA
	cmdGetQuota   = 0x800007                // Q_GETQUOTA
	cmdSetQuota   = 0x800008                // Q_SETQUOTA
	cmdGetState   = 'X'<<8 + 8              // Q_XGETQSTATV
	stateEnforced = 1<<4 | 1<<5             // FS_QUOTA_PDQ_ACCT, FS_QUOTA_PDQ_ENFD
	quotaBlock    = 1024                    // unit of block limits (QIF_DQBLKSIZE)
	validBlocks   = 1                       // QIF_BLIMITS
	firstProject  = 0x43000000              // our ids are in a range that people
	lastProject   = firstProject | 0xffffff // who number by hand don't reach
)

// fsxattr is struct fsxattr.
type fsxattr struct {
	flags, extSize, extents, project, cowExtSize uint32
	_                                            [8]byte
}

// dqblk is struct if_dqblk.
type dqblk struct {
	hardBlocks, softBlocks, bytes  uint64
	hardInodes, softInodes, inodes uint64
	blockTime, inodeTime           uint64
	valid                          uint32
	_                              uint32
}

// projects limits directory trees by project quotas.
type projects struct {
	dir *os.File   // on the file system
	mu  sync.Mutex // from choosing an id until it is in use
}

// openProjects returns nil where project quotas are not enforced.
func openProjects(dir string) (*projects, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	p := &projects{dir: f}
	// struct fs_quota_statv, version 1
	state := struct {
		version int8
		_       uint8
		flags   uint16
		_       [156]byte
	}{version: 1}
	err = p.quotactl(cmdGetState, 0, unsafe.Pointer(&state))
	if err != nil || state.flags&stateEnforced != stateEnforced {
		f.Close()
		return nil, nil
	}
	return p, nil
}

// quotactl is quotactl_fd(2), Linux 5.14.
func (p *projects) quotactl(cmd, id uint32, arg unsafe.Pointer) error {
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, p.dir.Fd(), uintptr(cmd<<8|projectQuota), uintptr(id), uintptr(arg), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// assign makes the empty directory the root of a new project with the limit.
func (p *projects) assign(dir *os.File, size api.Bytes) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	id, err := p.choose(dir.Name())
	if err != nil {
		return err
	}
	var x fsxattr
	if err := xattrIoctl(dir, reqGetXattr, &x); err != nil {
		return err
	}
	x.project, x.flags = id, x.flags|flagInherit
	if err := xattrIoctl(dir, reqSetXattr, &x); err != nil {
		return err
	}
	return p.limit(id, size)
}

// choose finds an id that nothing on the file system has: one whose project
// has no inode and no limit.
func (p *projects) choose(name string) (uint32, error) {
	h := fnv.New32a()
	h.Write([]byte(name))
	const span = lastProject - firstProject + 1
	for i := range uint32(span) {
		id := firstProject + (h.Sum32()+i)%span
		q, err := p.get(id)
		if err != nil {
			return 0, err
		}
		if q.inodes == 0 && q.bytes == 0 && q.hardBlocks == 0 {
			return id, nil
		}
	}
	return 0, api.Errorf(api.CodeNoResources, "no quota project id is free from %d to %d", uint32(firstProject), uint32(lastProject))
}

func (p *projects) get(id uint32) (dqblk, error) {
	var q dqblk
	err := p.quotactl(cmdGetQuota, id, unsafe.Pointer(&q))
	if errors.Is(err, unix.ENOENT) { // xfs: never used
		return dqblk{}, nil
	}
	if err != nil {
		return q, fmt.Errorf("get quota of project %d: %w", id, err)
	}
	return q, nil
}

func (p *projects) limit(id uint32, size api.Bytes) error {
	q := dqblk{hardBlocks: uint64(size+quotaBlock-1) / quotaBlock, valid: validBlocks}
	if err := p.quotactl(cmdSetQuota, id, unsafe.Pointer(&q)); err != nil {
		return fmt.Errorf("limit project %d: %w", id, err)
	}
	return nil
}

// usage is what the project holds and may hold.
func (p *projects) usage(id uint32) (used, size api.Bytes, err error) {
	q, err := p.get(id)
	return api.Bytes(q.bytes), api.Bytes(q.hardBlocks * quotaBlock), err
}

func (p *projects) Close() error { return p.dir.Close() }

// projectOf is the directory's project, 0 for none of ours.
func projectOf(dir *os.File) uint32 {
	var x fsxattr
	if err := xattrIoctl(dir, reqGetXattr, &x); err != nil || x.project < firstProject || x.project > lastProject {
		return 0
	}
	return x.project
}

func xattrIoctl(f *os.File, req uintptr, x *fsxattr) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), req, uintptr(unsafe.Pointer(x))); errno != 0 {
		return fmt.Errorf("project of %s: %w", f.Name(), errno)
	}
	return nil
}
