package setup

import (
	"fmt"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// dropPrivileges takes from every thread of this process what the guest
// isn't to have. Without no_new_privs a filter may be installed only with
// CAP_SYS_ADMIN, so that the filter comes before the capabilities go;
// capset(2) and prctl(2) are among what it allows.
func (b *builder) dropPrivileges() error {
	last, err := lastCap()
	if err != nil {
		return err
	}
	for c := range uintptr(last + 1) {
		if b.spec.Capabilities&(1<<c) == 0 {
			if err := everyThread(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0); err != nil {
				return fmt.Errorf("drop capability %d: %w", c, err)
			}
		}
	}
	if b.spec.NoNewPrivs {
		if err := everyThread(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0); err != nil {
			return fmt.Errorf("set no_new_privs: %w", err)
		}
	}
	if err := loadFilter(b.spec.Seccomp); err != nil {
		return err
	}
	keep := b.spec.Agent
	if b.spec.System {
		keep = b.spec.Capabilities
	}
	// Inheritable stays empty, and with it ambient: a program that isn't run
	// by root has none, set-user-ID and file capabilities aside.
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{
		{Effective: uint32(keep), Permitted: uint32(keep)},
		{Effective: uint32(keep >> 32), Permitted: uint32(keep >> 32)},
	}
	err = everyThread(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&data[0])), 0)
	runtime.KeepAlive(&hdr)
	runtime.KeepAlive(&data)
	if err != nil {
		return fmt.Errorf("set capabilities: %w", err)
	}
	return nil
}

func everyThread(trap, a, b, c uintptr) error {
	if _, _, e := syscall.AllThreadsSyscall(trap, a, b, c); e != 0 {
		return e
	}
	return nil
}

// lastCap is the highest capability that the kernel knows.
func lastCap() (int, error) {
	for c := range 64 {
		if _, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0); err != nil {
			return c - 1, nil
		}
	}
	return 0, fmt.Errorf("the kernel knows more than 64 capabilities")
}

// loadFilter installs the system call filter on all threads at once.
func loadFilter(filter []byte) error {
	prog := unix.SockFprog{
		Len:    uint16(len(filter) / 8),
		Filter: (*unix.SockFilter)(unsafe.Pointer(unsafe.SliceData(filter))),
	}
	r, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(filter)
	switch {
	case e != 0:
		return fmt.Errorf("install system call filter: %w", e)
	case r != 0:
		return fmt.Errorf("install system call filter: thread %d didn't take it", r)
	}
	return nil
}
