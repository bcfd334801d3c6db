package container

import (
	"sync"

	"github.com/cleave-project/cleave/engine/internal/seccomp"
	"github.com/cleave-project/cleave/engine/internal/validate"
)

// agentCaps are what our PID 1 needs for its own work in an application
// guest, whatever the guest itself may: change to the entry point's user
// and signal it. No program that it starts can get at them.
var agentCaps = []string{"CAP_KILL", "CAP_SETGID", "CAP_SETUID"}

// filters caches compiled system call filters by capability set.
type filters struct {
	mu sync.Mutex
	m  map[uint64][]byte
}

func (f *filters) get(caps []string) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	mask := validate.CapMask(caps)
	if b := f.m[mask]; b != nil {
		return b, nil
	}
	b, err := seccomp.Filter(caps)
	if err != nil {
		return nil, err
	}
	if f.m == nil {
		f.m = map[uint64][]byte{}
	}
	f.m[mask] = b
	return b, nil
}
