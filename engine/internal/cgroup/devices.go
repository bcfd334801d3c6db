package cgroup

import (
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Device is a character device that guests may use.
type Device struct {
	Major uint32
	Minor int64 // -1 for all
}

// GuestDevices are the devices that work in a guest, whatever nodes it gets
// hold of. All of them are made for unprivileged use: what a guest does with
// its /dev/fuse or /dev/net/tun stays in its own namespaces.
var GuestDevices = []Device{
	{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, // null zero full random urandom
	{5, 0}, {5, 1}, {5, 2}, {136, -1}, // tty console ptmx pts
	{10, 200}, {10, 229}, // net/tun fuse
}

// MonitorDevices are those that the monitors of machines may use. What they do
// with /dev/kvm is bounded by their memory and CPU.
var MonitorDevices = []Device{
	{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, {5, 0}, {136, -1}, // null zero full random urandom tty pts
	{10, 200}, {10, 232}, // net/tun kvm
}

// loadDeviceFilter loads a BPF_PROG_TYPE_CGROUP_DEVICE program that returns 1
// for the devices and 0 for all others (cgroup-v2.rst, "Device controller").
func loadDeviceFilter(allow []Device) (int, error) {
	prog := deviceProgram(allow)
	license := []byte("Apache-2.0\x00")
	attr := struct {
		progType, insnCnt uint32
		insns, license    uint64
		_                 [96]byte
	}{
		progType: unix.BPF_PROG_TYPE_CGROUP_DEVICE,
		insnCnt:  uint32(len(prog)),
		insns:    uint64(uintptr(unsafe.Pointer(unsafe.SliceData(prog)))),
		license:  uint64(uintptr(unsafe.Pointer(unsafe.SliceData(license)))),
	}
	var fd uintptr
	var e unix.Errno
	err := withoutSignals(func() {
		fd, _, e = unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	})
	runtime.KeepAlive(prog)
	runtime.KeepAlive(license)
	if err == nil && e != 0 {
		err = e
	}
	if err != nil {
		return -1, fmt.Errorf("load device filter: %w", err)
	}
	unix.CloseOnExec(int(fd))
	return int(fd), nil
}

// withoutSignals runs f on a thread that gets no signals. The verifier gives
// up with EAGAIN when one is pending (kernel/bpf/verifier.c, do_check), and
// Go's runtime sends SIGURG to threads that it wants to preempt: on a busy
// host the daemon would not start.
func withoutSignals(f func()) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, old unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &all, &old); err != nil {
		return fmt.Errorf("block signals: %w", err)
	}
	f()
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil); err != nil {
		return fmt.Errorf("unblock signals: %w", err)
	}
	return nil
}

// insn is struct bpf_insn; regs holds the destination in the low half.
type insn struct {
	op, regs byte
	off      int16
	imm      int32
}

func deviceProgram(allow []Device) []insn {
	load := func(reg byte, off int16) insn {
		return insn{op: unix.BPF_LDX | unix.BPF_W | unix.BPF_MEM, regs: reg | 1<<4, off: off}
	}
	exit := insn{op: unix.BPF_JMP | unix.BPF_EXIT}
	ret := func(v int32) []insn {
		return []insn{{op: unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_K, imm: v}, exit}
	}
	jne := func(reg byte, v int64, skip int16) insn {
		return insn{op: unix.BPF_JMP | unix.BPF_JNE | unix.BPF_K, regs: reg, off: skip, imm: int32(v)}
	}
	// struct bpf_cgroup_dev_ctx: access_type (kind in its low half), major, minor.
	p := []insn{load(2, 0), {op: unix.BPF_ALU64 | unix.BPF_AND | unix.BPF_K, regs: 2, imm: 0xffff}, load(3, 4), load(4, 8)}
	p = append(p, jne(2, unix.BPF_DEVCG_DEV_CHAR, 1), insn{op: unix.BPF_JMP | unix.BPF_JA, off: 2})
	p = append(p, ret(0)...)
	for _, d := range allow {
		if d.Minor < 0 {
			p = append(p, jne(3, int64(d.Major), 2))
		} else {
			p = append(p, jne(3, int64(d.Major), 3), jne(4, d.Minor, 2))
		}
		p = append(p, ret(1)...)
	}
	return append(p, ret(0)...)
}

// filterDevices puts the device policy on the group.
func (g *Group) filterDevices() error {
	if g.t.devices < 0 {
		return g.listDevices()
	}
	dir, err := unix.Open(g.V2(), unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	attr := struct {
		target, prog      uint32
		attachType, flags uint32
		_                 [96]byte
	}{target: uint32(dir), prog: uint32(g.t.devices), attachType: unix.BPF_CGROUP_DEVICE, flags: unix.BPF_F_ALLOW_MULTI}
	if _, _, e := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_ATTACH, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr)); e != 0 {
		return fmt.Errorf("attach device filter to cgroup %s: %w", g.id, e)
	}
	return nil
}

// listDevices is filterDevices by the version 1 controller.
func (g *Group) listDevices() error {
	dir := g.dir(g.t.v1["devices"])
	errs := []error{write(filepath.Join(dir, "devices.deny"), "a")}
	for _, d := range g.t.allowed {
		rule := fmt.Sprintf("c %d:%d rwm", d.Major, d.Minor)
		errs = append(errs, write(filepath.Join(dir, "devices.allow"), strings.Replace(rule, ":-1", ":*", 1)))
	}
	return errors.Join(errs...)
}
