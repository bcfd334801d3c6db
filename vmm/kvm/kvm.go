// Package kvm binds Linux's KVM (Documentation/virt/kvm/api.rst), as far as
// a monitor for x86-64 needs it. Types have the layout of the kernel's
// structures and the names of the processor manuals; methods are single
// system calls, with errors that name what failed.
//
// A VCPU belongs to one locked thread: Run and the calls for its state must
// come from there (api.rst, 3), all but Kick.
package kvm

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// apiVersion is the only one there is (api.rst, 4.1).
const apiVersion = 12

// ioctl numbers, from linux/kvm.h.
const (
	kvmGetAPIVersion       = 0xae00
	kvmCreateVM            = 0xae01
	kvmGetMSRIndexList     = 0xc004ae02
	kvmCheckExtension      = 0xae03
	kvmGetVCPUMmapSize     = 0xae04
	kvmGetSupportedCPUID   = 0xc008ae05
	kvmCreateVCPU          = 0xae41
	kvmGetDirtyLog         = 0x4010ae42
	kvmSetUserMemoryRegion = 0x4020ae46
	kvmSetTSSAddr          = 0xae47
	kvmSetIdentityMapAddr  = 0x4008ae48
	kvmCreateIRQChip       = 0xae60
	kvmIRQLine             = 0x4008ae61
	kvmGetIRQChip          = 0xc208ae62
	kvmSetIRQChip          = 0x8208ae63
	kvmSetGSIRouting       = 0x4008ae6a
	kvmIRQFD               = 0x4020ae76
	kvmIOEventFD           = 0x4040ae79
	kvmSetClock            = 0x4030ae7b
	kvmGetClock            = 0x8030ae7c
	kvmRun                 = 0xae80
	kvmGetRegs             = 0x8090ae81
	kvmSetRegs             = 0x4090ae82
	kvmGetSregs            = 0x8138ae83
	kvmSetSregs            = 0x4138ae84
	kvmGetMSRs             = 0xc008ae88
	kvmSetMSRs             = 0x4008ae89
	kvmGetFPU              = 0x81a0ae8c
	kvmSetFPU              = 0x41a0ae8d
	kvmGetLAPIC            = 0x8400ae8e
	kvmSetLAPIC            = 0x4400ae8f
	kvmSetCPUID2           = 0x4008ae90
	kvmGetMPState          = 0x8004ae98
	kvmSetMPState          = 0x4004ae99
	kvmNMI                 = 0xae9a
	kvmGetVCPUEvents       = 0x8040ae9f
	kvmSetVCPUEvents       = 0x4040aea0
	kvmGetDebugRegs        = 0x8080aea1
	kvmSetDebugRegs        = 0x4080aea2
	kvmSetTSCKHz           = 0xaea2
	kvmGetTSCKHz           = 0xaea3
	kvmGetXSAVE            = 0x9000aea4
	kvmSetXSAVE            = 0x5000aea5
	kvmSignalMSI           = 0x4020aea5
	kvmGetXCRS             = 0x8188aea6
	kvmSetXCRS             = 0x4188aea7
	kvmKVMClockCtrl        = 0xaead
	kvmEnableCap           = 0x4068aea3
	kvmResetDirtyRings     = 0xaec7
	kvmGetXSAVE2           = 0x9000aecf
)

// Cap is a capability that CheckExtension knows.
type Cap int

// Capabilities, from linux/kvm.h.
const (
	CapUserMemory    Cap = 3
	CapMPState       Cap = 14
	CapIRQRouting    Cap = 25
	CapIRQFD         Cap = 32
	CapIOEventFD     Cap = 36
	CapVCPUEvents    Cap = 41
	CapXCRS          Cap = 56
	CapSignalMSI     Cap = 77
	CapReadonlyMem   Cap = 81
	CapImmediateExit Cap = 136
	CapXSAVE2        Cap = 208
	CapDirtyRing     Cap = 192
)

// required is what every kernel that we support has, from 5.15 on.
var required = map[Cap]string{
	CapUserMemory: "user memory", CapIRQRouting: "interrupt routing", CapIRQFD: "irqfd", CapIOEventFD: "ioeventfd",
	CapMPState: "multiprocessing state", CapVCPUEvents: "vCPU events", CapXCRS: "extended control registers",
	CapSignalMSI: "message signalled interrupts", CapReadonlyMem: "read-only memory", CapImmediateExit: "immediate exit",
}

// System is /dev/kvm.
type System struct {
	dev     *os.File
	runSize int // of a vCPU's shared page
}

// Open opens /dev/kvm and checks that it can what this package relies on.
func Open() (*System, error) {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	s, err := FromFile(f)
	if err != nil {
		f.Close()
		return nil, err
	}
	return s, nil
}

// FromFile takes over an open /dev/kvm, as a jailed process inherits it.
func FromFile(f *os.File) (*System, error) {
	v, err := ioctl(f, kvmGetAPIVersion, 0)
	if err != nil {
		return nil, fmt.Errorf("ask %s for its version: %w", f.Name(), err)
	}
	if v != apiVersion {
		return nil, fmt.Errorf("KVM has version %d of its interface instead of %d", v, apiVersion)
	}
	s := &System{dev: f}
	for c, name := range required {
		if n, err := s.Check(c); err != nil || n == 0 {
			return nil, errors.Join(fmt.Errorf("this kernel's KVM has no %s", name), err)
		}
	}
	if s.runSize, err = ioctl(f, kvmGetVCPUMmapSize, 0); err != nil {
		return nil, fmt.Errorf("ask for the size of a vCPU's page: %w", err)
	}
	return s, nil
}

// Close closes the device. Machines made from it live on.
func (s *System) Close() error { return s.dev.Close() }

// Check returns what the kernel says of a capability: 0 if it has none.
func (s *System) Check(c Cap) (int, error) { return ioctl(s.dev, kvmCheckExtension, uintptr(c)) }

// MaxCPUID bounds what KVM_GET_SUPPORTED_CPUID returns (KVM_MAX_CPUID_ENTRIES).
const MaxCPUID = 256

// SupportedCPUID is what the host's processor and KVM can give a guest.
func (s *System) SupportedCPUID() ([]CPUIDEntry, error) {
	var m cpuidMessage
	m.n = MaxCPUID
	if err := ioctlPtr(s.dev, kvmGetSupportedCPUID, unsafe.Pointer(&m)); err != nil {
		return nil, fmt.Errorf("ask for the supported CPUID: %w", err)
	}
	return append([]CPUIDEntry(nil), m.entries[:min(m.n, MaxCPUID)]...), nil
}

// MSRs are the model specific registers whose values make up a vCPU's state.
func (s *System) MSRs() ([]uint32, error) {
	var m struct {
		n       uint32
		indices [1024]uint32
	}
	m.n = uint32(len(m.indices))
	if err := ioctlPtr(s.dev, kvmGetMSRIndexList, unsafe.Pointer(&m)); err != nil {
		return nil, fmt.Errorf("ask for the list of MSRs: %w", err)
	}
	return append([]uint32(nil), m.indices[:min(int(m.n), len(m.indices))]...), nil
}

// CreateVM makes an empty machine.
func (s *System) CreateVM() (*VM, error) {
	for {
		fd, err := ioctl(s.dev, kvmCreateVM, 0)
		// The kernel registers a notifier in between, which a signal (of the
		// Go runtime, say) interrupts.
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("create a virtual machine: %w", err)
		}
		unix.CloseOnExec(fd)
		return &VM{sys: s, file: os.NewFile(uintptr(fd), "kvm-vm")}, nil
	}
}

func ioctl(f *os.File, request, arg uintptr) (int, error) {
	n, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, arg)
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}

// ioctlPtr is ioctl with the address of a structure. The conversion to a
// number stands in the call, so that the structure stays where it is.
func ioctlPtr(f *os.File, request uintptr, arg unsafe.Pointer) error {
	_, err := ioctlCount(f, request, arg)
	return err
}

func ioctlCount(f *os.File, request uintptr, arg unsafe.Pointer) (int, error) {
	n, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(arg))
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}
