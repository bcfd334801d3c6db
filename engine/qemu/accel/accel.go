// Package accel finds out by measuring how fast a host executes a virtual
// machine's instructions, and how fast its time stamp counter counts.
//
// That /dev/kvm is there says little: a host may be a virtual machine itself,
// whose KVM interprets what it should execute, a thousand times slower than
// the processor. So a guest of 64-bit code is run that counts.
package accel

import (
	"errors"
	"fmt"
	"time"
)

// Enough is how many instructions per second make KVM worth its name. The
// slowest processor with virtualization executes fifty times as many, one that
// is emulated with its virtualization on a busy host still three times, and an
// interpreter a tenth.
const Enough = 10_000_000

// Limit is how long a measurement may take.
const Limit = 2 * time.Second

// ErrNoDevice says that there is no /dev/kvm.
var ErrNoDevice = errors.New("there is no /dev/kvm")

// Speed is instructions per second.
type Speed float64

func (s Speed) String() string {
	return fmt.Sprintf("%.3g million instructions per second", float64(s)/1e6)
}
