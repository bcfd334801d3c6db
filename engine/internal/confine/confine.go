// Package confine is what a process does to itself behind a new wall: it
// enters its root and gives up rights, before it executes something that is
// not to be trusted.
//
// What concerns rights holds for the calling thread alone, which the caller
// holds (runtime.LockOSThread): what the thread executes, or starts, begins
// with them, and no other thread outlives an execve(2).
package confine

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// BoundTo takes all capabilities but keep out of the bounding set.
func BoundTo(keep uint64) error {
	for c := range uintptr(lastCap() + 1) {
		if keep&(1<<c) == 0 {
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
				return fmt.Errorf("drop capability %d: %w", c, err)
			}
		}
	}
	return nil
}

// NoNewPrivs keeps set-user-ID bits and file capabilities from giving rights.
func NoNewPrivs() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	return nil
}

// SetCaps sets the capabilities of the thread.
func SetCaps(mask uint64) error {
	hdr, data := CapSet(mask)
	if err := unix.Capset(hdr, &data[0]); err != nil {
		return fmt.Errorf("set capabilities: %w", err)
	}
	return nil
}

// CapSet is the argument of capset(2). Inheritable stays empty, and with it
// ambient: a program that isn't run by root has none, set-user-ID and file
// capabilities aside.
func CapSet(mask uint64) (*unix.CapUserHeader, *[2]unix.CapUserData) {
	return &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &[2]unix.CapUserData{
		{Effective: uint32(mask), Permitted: uint32(mask)},
		{Effective: uint32(mask >> 32), Permitted: uint32(mask >> 32)},
	}
}

// lastCap is the highest capability that the kernel knows.
func lastCap() int {
	c := 0
	for c < 63 {
		if _, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c+1), 0, 0, 0); err != nil {
			break
		}
		c++
	}
	return c
}

// LoadFilter installs a system call filter on this thread.
func LoadFilter(filter []byte) error {
	prog := unix.SockFprog{
		Len:    uint16(len(filter) / 8),
		Filter: (*unix.SockFilter)(unsafe.Pointer(unsafe.SliceData(filter))),
	}
	_, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(filter)
	if e != 0 {
		return fmt.Errorf("install system call filter: %w", e)
	}
	return nil
}

// Become makes the thread user and group id, in no other group; that takes
// its capabilities (capabilities(7), "Effect of user ID changes on
// capabilities"). Package syscall's calls would change all threads.
func Become(id uint32) error {
	if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); e != 0 {
		return fmt.Errorf("leave all groups: %w", e)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(id), uintptr(id), uintptr(id)); e != 0 {
		return fmt.Errorf("become group %d: %w", id, e)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(id), uintptr(id), uintptr(id)); e != 0 {
		return fmt.Errorf("become user %d: %w", id, e)
	}
	return nil
}
