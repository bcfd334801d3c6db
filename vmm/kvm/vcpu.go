package kvm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// VCPU is a virtual processor.
type VCPU struct {
	ID   int
	vm   *VM
	file *os.File
	page []byte // struct kvm_run, shared with the kernel

	ring  []byte // shared too; nil without one
	taken uint64 // entries of it
}

// CreateVCPU makes a processor; its id is that of its local APIC.
func (v *VM) CreateVCPU(id int) (*VCPU, error) {
	fd, err := ioctl(v.file, kvmCreateVCPU, uintptr(id))
	if err != nil {
		return nil, fmt.Errorf("create vCPU %d: %w", id, err)
	}
	unix.CloseOnExec(fd)
	c := &VCPU{ID: id, vm: v, file: os.NewFile(uintptr(fd), "kvm-vcpu")}
	if c.page, err = unix.Mmap(fd, 0, v.sys.runSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		c.file.Close()
		return nil, fmt.Errorf("map vCPU %d: %w", id, err)
	}
	if v.rings > 0 {
		if err := c.mapRing(); err != nil {
			c.Close()
			return nil, err
		}
	}
	return c, nil
}

// Close lets go of the processor.
func (c *VCPU) Close() error {
	var errs []error
	for _, b := range [][]byte{c.page, c.ring} {
		if b != nil {
			errs = append(errs, unix.Munmap(b))
		}
	}
	return errors.Join(append(errs, c.file.Close())...)
}

// Reason is why a vCPU left the guest (api.rst, 5).
type Reason uint32

// Reasons that a monitor meets.
const (
	ExitUnknown       Reason = 0
	ExitIO            Reason = 2
	ExitHLT           Reason = 5 // only without an interrupt controller in the kernel
	ExitMMIO          Reason = 6
	ExitIRQWindow     Reason = 7
	ExitShutdown      Reason = 8 // triple fault
	ExitFailEntry     Reason = 9
	ExitIntr          Reason = 10
	ExitInternalError Reason = 17
	ExitSystemEvent   Reason = 24
	ExitDirtyRingFull Reason = 31
)

// Offsets in struct kvm_run.
const (
	offImmediateExit = 1
	offReason        = 8
	offUnion         = 32
)

// Run enters the guest until it needs the monitor. A signal to the thread, or
// SetImmediateExit before, ends it with unix.EINTR; what the guest had begun
// is complete then.
//
// It is a raw call between the runtime's bookkeeping, as any long system call:
// unix.Syscall, so that other goroutines go on.
func (c *VCPU) Run() (Reason, error) {
	_, _, e := unix.Syscall(unix.SYS_IOCTL, c.file.Fd(), kvmRun, 0)
	if e != 0 {
		return 0, e
	}
	return Reason(binary.NativeEndian.Uint32(c.page[offReason:])), nil
}

// SetImmediateExit has the next Run return at once, after completing what the
// last exit began. Set before a signal is sent to the thread, it closes the
// gap in which the thread has looked for work and not yet entered the guest
// (api.rst, 5, immediate_exit). Any thread may set it.
func (c *VCPU) SetImmediateExit(on bool) {
	b := byte(0)
	if on {
		b = 1
	}
	// A byte that the kernel reads on entry; x86 stores aren't reordered with
	// the signal that follows.
	*(*byte)(unsafe.Pointer(&c.page[offImmediateExit])) = b
}

// IO is an access to an I/O port: Count times Size bytes, as INS and OUTS
// repeat.
type IO struct {
	Port uint16
	Size int // 1, 2 or 4
	In   bool
	// Data is all of it; for In it is to be filled in before the next Run.
	Data []byte
}

// IO is what the guest did when Run returned ExitIO.
func (c *VCPU) IO() (IO, error) {
	u := c.page[offUnion:]
	x := IO{In: u[0] == 0, Size: int(u[1]), Port: binary.NativeEndian.Uint16(u[2:])}
	n := x.Size * int(binary.NativeEndian.Uint32(u[4:]))
	off := binary.NativeEndian.Uint64(u[8:])
	if x.Size == 0 || n <= 0 || off > uint64(len(c.page)) || uint64(n) > uint64(len(c.page))-off {
		return IO{}, fmt.Errorf("vCPU %d: KVM reports a port access of %d bytes at %#x of its page", c.ID, n, off)
	}
	x.Data = c.page[off : off+uint64(n)]
	return x, nil
}

// MMIO is an access to memory that isn't there.
type MMIO struct {
	Addr  uint64
	Write bool
	Data  []byte // to be filled in before the next Run if not Write
}

// MMIO is what the guest did when Run returned ExitMMIO.
func (c *VCPU) MMIO() (MMIO, error) {
	u := c.page[offUnion:]
	n := binary.NativeEndian.Uint32(u[16:])
	if n == 0 || n > 8 {
		return MMIO{}, fmt.Errorf("vCPU %d: KVM reports a memory access of %d bytes", c.ID, n)
	}
	return MMIO{Addr: binary.NativeEndian.Uint64(u), Data: u[8 : 8+n], Write: u[20] != 0}, nil
}

// SystemEvent is what the guest asked of its system.
type SystemEvent uint32

// System events.
const (
	EventShutdown SystemEvent = 1
	EventReset    SystemEvent = 2
	EventCrash    SystemEvent = 3
)

// SystemEvent is which, when Run returned ExitSystemEvent.
func (c *VCPU) SystemEvent() SystemEvent {
	return SystemEvent(binary.NativeEndian.Uint32(c.page[offUnion:]))
}

// Failure words what KVM says of ExitFailEntry and ExitInternalError.
func (c *VCPU) Failure(r Reason) error {
	u := c.page[offUnion:]
	switch r {
	case ExitFailEntry:
		return fmt.Errorf("vCPU %d can't enter the guest: hardware reason %#x", c.ID, binary.NativeEndian.Uint64(u))
	case ExitInternalError:
		err := fmt.Errorf("vCPU %d: KVM's internal error %d", c.ID, binary.NativeEndian.Uint32(u))
		if binary.NativeEndian.Uint32(u) == 1 && binary.NativeEndian.Uint64(u[8:])&1 != 0 && u[16] <= 15 {
			err = fmt.Errorf("%w: can't emulate the instruction % x", err, u[17:17+u[16]])
		}
		return err
	}
	return fmt.Errorf("vCPU %d left the guest for reason %d, which nobody expects", c.ID, r)
}
