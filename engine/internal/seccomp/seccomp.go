// Package seccomp compiles the system call filter of a guest from Moby's
// default profile and the guest's capabilities.
//
// The result is classic BPF, as seccomp(2) takes it: a binary search over
// ranges of system call numbers, so that a call costs some twenty
// instructions instead of hundreds. System calls of another architecture
// (32-bit ones on a 64-bit host, x32) are refused: they would be a second
// surface that nobody looks at.
package seccomp

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/elastic/go-seccomp-bpf/arch"
	moby "github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Return values of a filter (seccomp(2)).
const (
	allow      = unix.SECCOMP_RET_ALLOW
	kill       = unix.SECCOMP_RET_KILL_PROCESS
	noSuchCall = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
)

// Offsets in struct seccomp_data.
const (
	offNR   = 0
	offArch = 4
	offArgs = 16
)

// Filter is the filter for a guest with the capabilities, named like
// CAP_CHOWN, as an array of struct sock_filter. System calls in refuse fail
// with EPERM, whatever the profile says.
func Filter(capabilities []string, refuse ...string) ([]byte, error) {
	return assemble(compile(capabilities, refuse, special))
}

// FilterFirst is Filter for a program that is the first of a PID namespace
// and aborts by sending itself SIGABRT until it is dead: the kernel ignores
// signals of default action for that process, so that it would never be. The
// filter kills it instead, as if by SIGSYS.
func FilterFirst(capabilities []string, refuse ...string) ([]byte, error) {
	extra := maps.Clone(special)
	extra["kill"] = []rule{{[]specs.LinuxSeccompArg{is(0, 1), is(1, uint64(unix.SIGABRT))}, kill}}
	return assemble(compile(capabilities, refuse, extra))
}

// is holds for a value of an argument, of which the kernel takes the lower
// half.
func is(argument uint, value uint64) specs.LinuxSeccompArg {
	return specs.LinuxSeccompArg{Index: argument, Value: 0xffffffff, ValueTwo: value, Op: specs.OpMaskedEqual}
}

func assemble(prog []bpf.Instruction, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	raw, err := bpf.Assemble(prog)
	if err != nil {
		return nil, fmt.Errorf("assemble seccomp filter: %w", err)
	}
	if len(raw) > unix.BPF_MAXINSNS {
		return nil, fmt.Errorf("seccomp filter has %d instructions, the kernel takes %d", len(raw), unix.BPF_MAXINSNS)
	}
	b := make([]byte, 0, 8*len(raw))
	for _, i := range raw {
		b = binary.NativeEndian.AppendUint16(b, i.Op)
		b = append(b, i.Jt, i.Jf)
		b = binary.NativeEndian.AppendUint32(b, i.K)
	}
	return b, nil
}

// subvolumes are the requests of ioctl(2) by which the owner of a directory on
// btrfs makes subvolumes and snapshots in it (linux/btrfs.h). Each one takes an
// anonymous device number, of which the host has a million for all its mounts,
// and full quota groups don't count what is in it. A guest hears what any
// other file system says, and whoever can do without makes a directory. The
// kernel looks at the lower half of the argument only.
var subvolumes = func() (rs []rule) {
	for _, request := range []uint64{
		0x50009401, // BTRFS_IOC_SNAP_CREATE
		0x5000940e, // BTRFS_IOC_SUBVOL_CREATE
		0x50009417, // BTRFS_IOC_SNAP_CREATE_V2
		0x50009418, // BTRFS_IOC_SUBVOL_CREATE_V2
	} {
		rs = append(rs, rule{[]specs.LinuxSeccompArg{is(1, request)}, unix.SECCOMP_RET_ERRNO | uint32(unix.ENOTTY)})
	}
	return rs
}()

// special are rules that come before those of the profile, by the name of the
// system call.
var special = map[string][]rule{"ioctl": subvolumes}

// rule is what one entry of the profile says of a system call.
type rule struct {
	args   []specs.LinuxSeccompArg // all must hold
	action uint32
}

// span is a range of system calls with the same verdict, up to the next one.
type span struct {
	first uint32
	rules []rule // the first one that holds decides
	rest  uint32
}

func compile(capabilities, refuse []string, extra map[string][]rule) ([]bpf.Instruction, error) {
	profile, err := moby.GetDefaultProfile(&specs.Spec{Process: &specs.Process{
		Capabilities: &specs.LinuxCapabilities{Bounding: capabilities},
	}})
	if err != nil {
		return nil, fmt.Errorf("read seccomp profile: %w", err)
	}
	info, err := arch.GetInfo("")
	if err != nil {
		return nil, fmt.Errorf("seccomp: %w", err)
	}
	spans, err := spansOf(profile, info, refuse, extra)
	if err != nil {
		return nil, err
	}
	prog := []bpf.Instruction{
		bpf.LoadAbsolute{Off: offArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(info.ID), SkipTrue: 1},
		bpf.RetConstant{Val: kill},
		bpf.LoadAbsolute{Off: offNR, Size: 4},
	}
	search, err := search(spans)
	return append(prog, search...), err
}

// spansOf turns the profile into adjoining ranges that begin at 0. Calls
// newer than all that the profile knows don't exist for the guest, so that
// its C library takes the older way; x32 numbers are among them.
func spansOf(profile *specs.LinuxSeccomp, info *arch.Info, refuse []string, extra map[string][]rule) ([]span, error) {
	rules := map[uint32][]rule{}
	for _, s := range profile.Syscalls {
		action, err := verdict(s.Action, s.ErrnoRet)
		if err != nil {
			return nil, err
		}
		for _, name := range s.Names {
			if nr, ok := info.SyscallNames[name]; ok {
				rules[uint32(nr)] = append(rules[uint32(nr)], rule{s.Args, action})
			}
		}
	}
	for _, name := range refuse {
		nr, ok := info.SyscallNames[name]
		if !ok {
			return nil, fmt.Errorf("seccomp: %s is no system call of this architecture", name)
		}
		rules[uint32(nr)] = []rule{{nil, unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)}}
	}
	rest, err := verdict(profile.DefaultAction, profile.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	before := map[uint32][]rule{}
	for name, rs := range extra {
		nr, ok := info.SyscallNames[name]
		if !ok {
			return nil, fmt.Errorf("seccomp: %s is no system call of this architecture", name)
		}
		before[uint32(nr)] = rs
	}
	last := slices.Max(slices.Collect(maps.Keys(rules)))
	var spans []span
	for nr := range last + 2 {
		s := span{first: nr, rest: rest}
		switch rs := rules[nr]; {
		case nr > last:
			s.rest = noSuchCall
		case slices.ContainsFunc(rs, unconditional):
			s.rest = rs[slices.IndexFunc(rs, unconditional)].action
		default:
			s.rules = rs
		}
		if rs := before[nr]; rs != nil {
			s.rules = append(slices.Clone(rs), s.rules...)
		}
		if n := len(spans); n > 0 && spans[n-1].rules == nil && s.rules == nil && spans[n-1].rest == s.rest {
			continue
		}
		spans = append(spans, s)
	}
	return spans, nil
}

func unconditional(r rule) bool { return len(r.args) == 0 }

func verdict(a specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	switch a {
	case specs.ActAllow:
		return allow, nil
	case specs.ActErrno:
		if errno != nil {
			return unix.SECCOMP_RET_ERRNO | uint32(cmp.Or(*errno, uint(unix.EPERM))), nil
		}
		return unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM), nil
	case specs.ActKill, specs.ActKillProcess, specs.ActKillThread:
		return kill, nil
	}
	return 0, fmt.Errorf("seccomp profile: action %s is not known", a)
}

// search finds the span of the number in the accumulator. Conditional jumps
// reach 255 instructions only, so that each goes around a jump that doesn't
// mind the distance.
func search(spans []span) ([]bpf.Instruction, error) {
	if len(spans) == 1 {
		return spans[0].code()
	}
	half := len(spans) / 2
	low, err := search(spans[:half])
	if err != nil {
		return nil, err
	}
	high, err := search(spans[half:])
	if err != nil {
		return nil, err
	}
	prog := []bpf.Instruction{
		bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: spans[half].first, SkipFalse: 1},
		bpf.Jump{Skip: uint32(len(low))},
	}
	return append(append(prog, low...), high...), nil
}

func (s span) code() ([]bpf.Instruction, error) {
	var prog []bpf.Instruction
	for _, r := range s.rules {
		// Conditions from the last to the first, since each one jumps over
		// what follows when it fails.
		code := []bpf.Instruction{bpf.RetConstant{Val: r.action}}
		for _, a := range slices.Backward(r.args) {
			c, err := condition(a, uint32(len(code)))
			if err != nil {
				return nil, err
			}
			code = append(c, code...)
		}
		prog = append(prog, code...)
	}
	return append(prog, bpf.RetConstant{Val: s.rest}), nil
}

// condition goes on behind itself when the argument meets it, and skip
// instructions further when not. Arguments have 64 bits, BPF has 32.
func condition(a specs.LinuxSeccompArg, skip uint32) ([]bpf.Instruction, error) {
	hi, lo := uint32(a.Value>>32), uint32(a.Value)
	load := func(half int) bpf.LoadAbsolute {
		// seccomp_data is in the byte order of the machine; all that Go and
		// the profile share here are little-endian.
		return bpf.LoadAbsolute{Off: uint32(offArgs + 8*a.Index + uint(4*half)), Size: 4}
	}
	fail := bpf.Jump{Skip: skip}
	switch a.Op {
	case specs.OpEqualTo:
		return []bpf.Instruction{
			load(1),
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: hi, SkipFalse: 2},
			load(0),
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: lo, SkipTrue: 1},
			fail,
		}, nil
	case specs.OpMaskedEqual:
		want := a.ValueTwo
		return []bpf.Instruction{
			load(1),
			bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: hi},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(want >> 32), SkipFalse: 3},
			load(0),
			bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: lo},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(want), SkipTrue: 1},
			fail,
		}, nil
	case specs.OpLessThan:
		if hi != 0 {
			break
		}
		return []bpf.Instruction{
			load(1),
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipFalse: 2},
			load(0),
			bpf.JumpIf{Cond: bpf.JumpLessThan, Val: lo, SkipTrue: 1},
			fail,
		}, nil
	}
	return nil, fmt.Errorf("seccomp profile: condition %s %#x is not known", a.Op, a.Value)
}
