package setup

import (
	"fmt"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/engine/internal/confine"
)

// dropPrivileges takes from this thread what the guest isn't to have.
//
// Without no_new_privs a filter may be installed only with CAP_SYS_ADMIN, so
// that the filter comes before the capabilities go; capset(2) and prctl(2)
// are among what it allows.
func (b *builder) dropPrivileges() error {
	if err := confine.BoundTo(b.spec.Capabilities); err != nil {
		return err
	}
	if b.spec.NoNewPrivs {
		if err := confine.NoNewPrivs(); err != nil {
			return err
		}
	}
	if err := confine.LoadFilter(b.spec.Seccomp); err != nil {
		return err
	}
	return confine.SetCaps(b.spec.Capabilities)
}

// withhold takes capabilities out of the bounding set of every thread, and
// thereby from all that this process will execute; surplus ones it gives up
// itself too.
func withhold(mask, surplus uint64) error {
	if mask == 0 {
		return nil
	}
	hdr, data := confine.CapSet(0)
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
	hdr, data = confine.CapSet(own &^ surplus)
	_, _, e := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(hdr)), uintptr(unsafe.Pointer(data)), 0)
	runtime.KeepAlive(hdr)
	runtime.KeepAlive(data)
	if e != 0 {
		return fmt.Errorf("set capabilities: %w", e)
	}
	return nil
}
