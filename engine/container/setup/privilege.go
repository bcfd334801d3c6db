package setup

import (
	"fmt"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// dropPrivileges takes from this thread what the guest isn't to have: what
// the thread executes next, or starts, begins with the bounding set and the
// filter, and no other thread outlives that (execve(2), capabilities(7)).
//
// Without no_new_privs a filter may be installed only with CAP_SYS_ADMIN, so
// that the filter comes before the capabilities go; capset(2) and prctl(2)
// are among what it allows.
func (b *builder) dropPrivileges() error {
	for c := range uintptr(lastCap() + 1) {
		if b.spec.Capabilities&(1<<c) == 0 {
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
				return fmt.Errorf("drop capability %d: %w", c, err)
			}
		}
	}
	if b.spec.NoNewPrivs {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("set no_new_privs: %w", err)
		}
	}
	if err := loadFilter(b.spec.Seccomp); err != nil {
		return err
	}
	hdr, data := capSet(b.spec.Capabilities)
	if err := unix.Capset(hdr, &data[0]); err != nil {
		return fmt.Errorf("set capabilities: %w", err)
	}
	return nil
}

// capSet is the argument of capset(2). Inheritable stays empty, and with it
// ambient: a program that isn't run by root has none, set-user-ID and file
// capabilities aside.
func capSet(mask uint64) (*unix.CapUserHeader, *[2]unix.CapUserData) {
	return &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &[2]unix.CapUserData{
		{Effective: uint32(mask), Permitted: uint32(mask)},
		{Effective: uint32(mask >> 32), Permitted: uint32(mask >> 32)},
	}
}

// withhold takes capabilities out of the bounding set of every thread, and
// thereby from all that this process will execute; surplus ones it gives up
// itself too.
func withhold(mask, surplus uint64) error {
	if mask == 0 {
		return nil
	}
	hdr, data := capSet(0)
	if err := unix.Capget(hdr, &data[0]); err != nil {
		return fmt.Errorf("get capabilities: %w", err)
	}
	own := uint64(data[0].Permitted) | uint64(data[1].Permitted)<<32
	for c := range uintptr(64) {
		if (mask|surplus)&(1<<c) == 0 {
			continue
		}
		if _, _, e := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0); e != 0 {
			return fmt.Errorf("withhold capability %d: %w", c, e)
		}
	}
	hdr, data = capSet(own &^ surplus)
	_, _, e := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(hdr)), uintptr(unsafe.Pointer(data)), 0)
	runtime.KeepAlive(hdr)
	runtime.KeepAlive(data)
	if e != 0 {
		return fmt.Errorf("set capabilities: %w", e)
	}
	return nil
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

// loadFilter installs the system call filter on this thread.
func loadFilter(filter []byte) error {
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
