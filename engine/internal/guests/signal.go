package guests

import (
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// ParseSignal reads SIGTERM, term, 15 or SIGRTMIN+3. Real-time signals
// count from the C library's 34, which is what programs mean by SIGRTMIN.
func ParseSignal(s string) (syscall.Signal, error) {
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if n, err := strconv.Atoi(name); err == nil && n > 0 && n <= 64 {
		return syscall.Signal(n), nil
	}
	for _, r := range []struct {
		name, op string
		base     int
		sign     int
	}{{"RTMIN", "+", 34, 1}, {"RTMAX", "-", 64, -1}} {
		if name == r.name {
			return syscall.Signal(r.base), nil
		}
		if off, ok := strings.CutPrefix(name, r.name+r.op); ok {
			if n, err := strconv.ParseUint(off, 10, 5); err == nil && n <= 64-34 {
				return syscall.Signal(r.base + r.sign*int(n)), nil
			}
		}
	}
	if n := unix.SignalNum("SIG" + name); n > 0 {
		return n, nil
	}
	return 0, api.Errorf(api.CodeInvalid, "%q is no signal", s).WithHint("write a name like SIGTERM or SIGRTMIN+3, or a number")
}
