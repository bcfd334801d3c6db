//go:build !amd64

package accel

import "errors"

// KVM can't be measured on this architecture, and isn't trusted unmeasured.
func KVM() (Speed, error) {
	return 0, errors.New("how fast it is can be measured on amd64 only")
}

// TSC is that of QEMU's translated guests where the host has no such counter:
// it counts nanoseconds (cpu_get_host_ticks in include/qemu/timer.h).
func TSC() int { return 1_000_000 }
