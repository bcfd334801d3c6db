package keeper

import (
	"math"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// descriptorSet is what a clone needs: the executable, the cgroup's directory
// (-1 for none), the three of stdio, and the guest's files.
type descriptorSet []int

func (d descriptorSet) exe() int         { return d[0] }
func (d descriptorSet) cgroup() int      { return d[1] }
func (d descriptorSet) inherited() []int { return d[2:] }

func (l *launch) descriptors() (descriptorSet, error) {
	fds, err := descriptors(append([]*os.File{l.exe}, l.files...))
	if err != nil {
		return nil, err
	}
	cgroup := -1
	if l.cgroup != nil {
		dir, err := descriptors([]*os.File{l.cgroup})
		if err != nil {
			return nil, err
		}
		cgroup = dir[0]
	}
	return slices.Concat(descriptorSet{fds[0], cgroup}, l.stdio[:], fds[1:]), nil
}

// keeperFDs is above what the keeper opened before its first guest, which the
// runtime (its epoll instance among them) goes on using.
const keeperFDs = 64

// alone moves the descriptors of d below those of the keeper's other guests,
// and closes the latter. The table must be the calling thread's own.
//
// A child's table is as large as its parent's highest descriptor asks for, and
// exec closes descriptors but never shrinks it: with 1000 guests in the keeper
// each one more had 32 KiB of kernel memory for a table of nothing.
func (d descriptorSet) alone() error {
	low := keeperFDs
	for slices.ContainsFunc(d, func(fd int) bool { return fd >= low && fd < low+len(d) }) {
		low++ // d is short: a gap comes soon
	}
	for i, fd := range d {
		if fd < 0 {
			continue
		}
		if err := unix.Dup3(fd, low+i, unix.O_CLOEXEC); err != nil {
			return os.NewSyscallError("dup3", err)
		}
		d[i] = low + i
	}
	return os.NewSyscallError("close_range", unix.CloseRange(uint(low+len(d)), math.MaxUint32, 0))
}

// dupAbove duplicates the executable's descriptor to one above all those that
// forking shuffles: the child opens it by number right before it executes.
func dupAbove(exe int, inherited []int) (int, error) {
	return unix.FcntlInt(uintptr(exe), unix.F_DUPFD_CLOEXEC, slices.Max(inherited)+len(inherited)+16)
}
