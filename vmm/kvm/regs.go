package kvm

import (
	"fmt"
	"unsafe"
)

// get and set are the calls that move one structure.
func (c *VCPU) get(request uintptr, p unsafe.Pointer, what string) error {
	if err := ioctlPtr(c.file, request, p); err != nil {
		return fmt.Errorf("read %s of vCPU %d: %w", what, c.ID, err)
	}
	return nil
}

func (c *VCPU) set(request uintptr, p unsafe.Pointer, what string) error {
	if err := ioctlPtr(c.file, request, p); err != nil {
		return fmt.Errorf("set %s of vCPU %d: %w", what, c.ID, err)
	}
	return nil
}

// Regs reads the general purpose registers.
func (c *VCPU) Regs() (r Regs, err error) {
	return r, c.get(kvmGetRegs, unsafe.Pointer(&r), "registers")
}

// SetRegs writes them.
func (c *VCPU) SetRegs(r Regs) error { return c.set(kvmSetRegs, unsafe.Pointer(&r), "registers") }

// Sregs reads the special registers.
func (c *VCPU) Sregs() (r Sregs, err error) {
	return r, c.get(kvmGetSregs, unsafe.Pointer(&r), "special registers")
}

// SetSregs writes them.
func (c *VCPU) SetSregs(r Sregs) error {
	return c.set(kvmSetSregs, unsafe.Pointer(&r), "special registers")
}

// FPU reads the floating point state.
func (c *VCPU) FPU() (f FPU, err error) {
	return f, c.get(kvmGetFPU, unsafe.Pointer(&f), "floating point state")
}

// SetFPU writes it.
func (c *VCPU) SetFPU(f FPU) error {
	return c.set(kvmSetFPU, unsafe.Pointer(&f), "floating point state")
}

// LAPIC reads the local APIC.
func (c *VCPU) LAPIC() (l LAPIC, err error) {
	return l, c.get(kvmGetLAPIC, unsafe.Pointer(&l), "local APIC")
}

// SetLAPIC writes it.
func (c *VCPU) SetLAPIC(l LAPIC) error { return c.set(kvmSetLAPIC, unsafe.Pointer(&l), "local APIC") }

// MPState reads how it stands among the others.
func (c *VCPU) MPState() (s MPState, err error) {
	return s, c.get(kvmGetMPState, unsafe.Pointer(&s), "multiprocessing state")
}

// SetMPState sets it.
func (c *VCPU) SetMPState(s MPState) error {
	return c.set(kvmSetMPState, unsafe.Pointer(&s), "multiprocessing state")
}

// Events reads what is in flight.
func (c *VCPU) Events() (e VCPUEvents, err error) {
	return e, c.get(kvmGetVCPUEvents, unsafe.Pointer(&e), "events")
}

// SetEvents writes it.
func (c *VCPU) SetEvents(e VCPUEvents) error {
	return c.set(kvmSetVCPUEvents, unsafe.Pointer(&e), "events")
}

// DebugRegs reads DR0 to DR7.
func (c *VCPU) DebugRegs() (d DebugRegs, err error) {
	return d, c.get(kvmGetDebugRegs, unsafe.Pointer(&d), "debug registers")
}

// SetDebugRegs writes them.
func (c *VCPU) SetDebugRegs(d DebugRegs) error {
	return c.set(kvmSetDebugRegs, unsafe.Pointer(&d), "debug registers")
}

// XCRS reads the extended control registers.
func (c *VCPU) XCRS() (x XCRS, err error) {
	return x, c.get(kvmGetXCRS, unsafe.Pointer(&x), "extended control registers")
}

// SetXCRS writes them.
func (c *VCPU) SetXCRS(x XCRS) error {
	return c.set(kvmSetXCRS, unsafe.Pointer(&x), "extended control registers")
}

// XSAVESize is how long a vCPU's extended state is.
func (v *VM) XSAVESize() int {
	n, err := v.Check(CapXSAVE2)
	if err != nil {
		return minXSAVE
	}
	return max(n, minXSAVE)
}

// minXSAVE is the size of struct kvm_xsave without more.
const minXSAVE = 4096

// XSAVE reads the extended processor state into an area of XSAVESize bytes.
func (c *VCPU) XSAVE(area []byte) error {
	request := uintptr(kvmGetXSAVE)
	if len(area) > minXSAVE {
		request = kvmGetXSAVE2
	}
	if len(area) < minXSAVE {
		return fmt.Errorf("read extended state of vCPU %d: %d bytes are too few", c.ID, len(area))
	}
	return c.get(request, unsafe.Pointer(unsafe.SliceData(area)), "extended state")
}

// SetXSAVE writes it.
func (c *VCPU) SetXSAVE(area []byte) error {
	if len(area) < minXSAVE {
		return fmt.Errorf("set extended state of vCPU %d: %d bytes are too few", c.ID, len(area))
	}
	return c.set(kvmSetXSAVE, unsafe.Pointer(unsafe.SliceData(area)), "extended state")
}

// SetCPUID says what CPUID answers. It comes before the first Run.
func (c *VCPU) SetCPUID(entries []CPUIDEntry) error {
	if len(entries) > MaxCPUID {
		return fmt.Errorf("%d CPUID leaves are too many", len(entries))
	}
	m := &cpuidMessage{n: uint32(len(entries))}
	copy(m.entries[:], entries)
	return c.set(kvmSetCPUID2, unsafe.Pointer(m), "CPUID")
}

// MaxMSRs bounds a call (MAX_IO_MSRS is 256).
const MaxMSRs = 256

type msrMessage struct {
	n, _    uint32
	entries [MaxMSRs]MSR
}

// MSRs reads registers by their Index and fills in their values. The kernel
// stops at the first that it doesn't have, which n tells.
func (c *VCPU) MSRs(list []MSR) (n int, err error) {
	if len(list) > MaxMSRs {
		return 0, fmt.Errorf("%d MSRs are too many at once", len(list))
	}
	m := &msrMessage{n: uint32(len(list))}
	copy(m.entries[:], list)
	n, err = ioctlCount(c.file, kvmGetMSRs, unsafe.Pointer(m))
	if err != nil {
		return 0, fmt.Errorf("read MSRs of vCPU %d: %w", c.ID, err)
	}
	return copy(list, m.entries[:min(n, len(list))]), nil
}

// SetMSRs writes registers, up to the first that the kernel refuses, which n
// tells.
func (c *VCPU) SetMSRs(list []MSR) (n int, err error) {
	if len(list) > MaxMSRs {
		return 0, fmt.Errorf("%d MSRs are too many at once", len(list))
	}
	m := &msrMessage{n: uint32(len(list))}
	copy(m.entries[:], list)
	n, err = ioctlCount(c.file, kvmSetMSRs, unsafe.Pointer(m))
	if err != nil {
		return 0, fmt.Errorf("set MSRs of vCPU %d: %w", c.ID, err)
	}
	return n, nil
}

// TSCKHz is the frequency of the time stamp counter in kHz.
func (c *VCPU) TSCKHz() (int, error) {
	n, err := ioctl(c.file, kvmGetTSCKHz, 0)
	if err != nil {
		return 0, fmt.Errorf("read the time stamp counter's frequency of vCPU %d: %w", c.ID, err)
	}
	return n, nil
}

// SetTSCKHz sets it, where the processor can (KVM_CAP_TSC_CONTROL).
func (c *VCPU) SetTSCKHz(khz int) error {
	if _, err := ioctl(c.file, kvmSetTSCKHz, uintptr(khz)); err != nil {
		return fmt.Errorf("set the time stamp counter's frequency of vCPU %d to %d kHz: %w", c.ID, khz, err)
	}
	return nil
}

// ClockPaused tells the guest's kernel that it was stopped by us, so that its
// watchdogs don't take that for a lockup (api.rst, 4.70).
func (c *VCPU) ClockPaused() error {
	if _, err := ioctl(c.file, kvmKVMClockCtrl, 0); err != nil {
		return fmt.Errorf("tell vCPU %d that it was paused: %w", c.ID, err)
	}
	return nil
}

// NMI injects one.
func (c *VCPU) NMI() error {
	if _, err := ioctl(c.file, kvmNMI, 0); err != nil {
		return fmt.Errorf("inject an NMI into vCPU %d: %w", c.ID, err)
	}
	return nil
}
