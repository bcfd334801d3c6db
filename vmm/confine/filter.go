package confine

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// call allows a system call, always or if an argument, of which the lower half
// counts, meets one of the conditions: any number for the whole of it, or one
// under a mask.
type call struct {
	nr       uint32
	argument int
	when     []condition
}

// condition holds for an argument that, under a mask, is a value.
type condition struct{ mask, value uint32 }

// whole masks nothing.
const whole = 0xffffffff

// is are the conditions of an argument that is one of some values.
func is(values ...uint32) (out []condition) {
	for _, v := range values {
		out = append(out, condition{whole, v})
	}
	return out
}

// Offsets in struct seccomp_data.
const (
	offNR   = 0
	offArch = 4
	offArgs = 16
)

// refused is what becomes of other calls.
const refused = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)

// compile makes a program that looks for a call in the order of the list: what
// is made most often comes first. The kernel asks it only for calls that
// depend on their arguments; what it says of others it remembers (since Linux
// 5.11).
func compile(list []call) ([]unix.SockFilter, error) {
	load := func(off int) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: uint32(off)}
	}
	equal := func(v uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: yes, Jf: no, K: v}
	}
	ret := func(v uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: v} }
	prog := []unix.SockFilter{
		load(offArch), equal(unix.AUDIT_ARCH_X86_64, 1, 0), ret(unix.SECCOMP_RET_KILL_PROCESS),
		load(offNR), // x32's numbers have a bit that none of ours has
	}
	for _, c := range list {
		if c.when == nil {
			prog = append(prog, equal(c.nr, 0, 1), ret(unix.SECCOMP_RET_ALLOW))
			continue
		}
		body := []unix.SockFilter{load(offArgs + 8*c.argument)}
		for _, w := range c.when {
			if w.mask != whole {
				body = append(body, unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: w.mask})
			}
			body = append(body, equal(w.value, 0, 1), ret(unix.SECCOMP_RET_ALLOW))
		}
		body = append(body, ret(refused))
		if len(body) > 255 || len(c.when) > 1 && c.when[0].mask != whole {
			return nil, fmt.Errorf("system call %d has %d conditions", c.nr, len(c.when))
		}
		prog = append(append(prog, equal(c.nr, 0, uint8(len(body)))), body...)
	}
	return append(prog, ret(refused)), nil
}
