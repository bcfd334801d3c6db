package machine

import (
	"sync"

	"github.com/cleave-project/cleave/engine/internal/seccomp"
)

// untraced are the system calls by which a process gets at another's memory
// and descriptors. Among processes of one user they need no right besides.
var untraced = []string{"ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "process_madvise", "kcmp"}

// The filters of monitors: those of guests without capabilities. The one that
// traces aborts by hand (User Mode Linux, when its guest panics).
var (
	plainFilter   = sync.OnceValues(func() ([]byte, error) { return seccomp.Filter(nil, untraced...) })
	tracingFilter = sync.OnceValues(func() ([]byte, error) { return seccomp.FilterFirst(nil) })
)

func monitorFilter(trace bool) ([]byte, error) {
	if trace {
		return tracingFilter()
	}
	return plainFilter()
}
