package container

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// seccompAction asks whether filters can return an action.
func seccompAction(action *uint32) error {
	const getActionAvail = 2 // SECCOMP_GET_ACTION_AVAIL
	if _, _, e := unix.Syscall(unix.SYS_SECCOMP, getActionAvail, 0, uintptr(unsafe.Pointer(action))); e != 0 {
		return e
	}
	return nil
}
