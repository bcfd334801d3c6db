// Package confine shuts a monitor's process in, before its guest's first
// instruction: no way to new privileges, no capabilities, no files but those
// that are open, and a filter of system calls (seccomp(2)): what isn't needed
// fails with EPERM. The threads that run vCPUs, on which a guest's accesses are
// handled, get a stricter one. ioctl is allowed by request.
//
// Each step is for good, and holds for threads that come later too.
package confine

import (
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Process shuts all threads in.
func Process() error {
	if _, _, e := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); e != 0 {
		return fmt.Errorf("give up new privileges: %w", e)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if _, _, e := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&none)), 0); e != 0 {
		return fmt.Errorf("drop capabilities: %w", e)
	}
	if err := install(process, unix.SECCOMP_FILTER_FLAG_TSYNC); err != nil {
		return fmt.Errorf("filter system calls: %w", err)
	}
	return nil
}

// Thread adds the stricter filter to the calling thread, which is locked to
// its goroutine and is never unlocked.
func Thread() error {
	if err := install(thread, 0); err != nil {
		return fmt.Errorf("filter system calls of a vCPU: %w", err)
	}
	return nil
}

func install(list []call, flags uintptr) error {
	prog, err := compile(list)
	if err != nil {
		return err
	}
	p := unix.SockFprog{Len: uint16(len(prog)), Filter: unsafe.SliceData(prog)}
	r, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&p)))
	if e != 0 {
		return e
	}
	if r != 0 {
		return fmt.Errorf("thread %d can't be filtered", r)
	}
	return nil
}

// EmptyRoot leaves the process, which has a mount namespace of its own, with a
// root directory in which there is nothing, and can't be.
func EmptyRoot() error {
	const place = "/proc" // any directory that is always there
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"keep mounts to itself", func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") }},
		{"mount an empty root", func() error {
			return unix.Mount("root", place, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=0,nr_inodes=1,mode=0555")
		}},
		{"enter it", func() error { return os.Chdir(place) }},
		{"make it the root", func() error { return unix.PivotRoot(".", ".") }},
		{"leave the old one", func() error { return unix.Unmount(".", unix.MNT_DETACH) }},
		{"make it read-only", func() error {
			return unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
		}},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return os.Chdir("/")
}
