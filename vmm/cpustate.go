package vmm

import (
	"errors"
	"fmt"

	"github.com/cleave-project/cleave/vmm/kvm"
)

// cpuState is a processor between two instructions. Version 1, as all of
// state.
type cpuState struct {
	CPUID  []kvm.CPUIDEntry
	MP     kvm.MPState
	Regs   kvm.Regs
	Sregs  kvm.Sregs
	XSAVE  []byte
	XCRS   kvm.XCRS
	Debug  kvm.DebugRegs
	LAPIC  []byte
	MSRs   []kvm.MSR
	Events kvm.VCPUEvents
	TSCKHz int
}

// save reads a processor that is out of the guest. How it stands among the
// others comes first, since asking for that takes up what is on its way.
func (c *vcpu) save(vm *kvm.VM, msrs []uint32) (*cpuState, error) {
	s := &cpuState{CPUID: c.cpuid, XSAVE: make([]byte, vm.XSAVESize()), TSCKHz: c.tscKHz}
	var lapic kvm.LAPIC
	var errs [9]error
	s.MP, errs[0] = c.cpu.MPState()
	s.Regs, errs[1] = c.cpu.Regs()
	s.Sregs, errs[2] = c.cpu.Sregs()
	errs[3] = c.cpu.XSAVE(s.XSAVE)
	s.XCRS, errs[4] = c.cpu.XCRS()
	s.Debug, errs[5] = c.cpu.DebugRegs()
	lapic, errs[6] = c.cpu.LAPIC()
	s.MSRs, errs[7] = readMSRs(c.cpu, msrs)
	s.Events, errs[8] = c.cpu.Events()
	s.LAPIC = lapic[:]
	return s, errors.Join(errs[:]...)
}

// readMSRs reads those that there are.
func readMSRs(c *kvm.VCPU, indices []uint32) ([]kvm.MSR, error) {
	var out []kvm.MSR
	for len(indices) > 0 {
		some := make([]kvm.MSR, min(len(indices), kvm.MaxMSRs))
		for i := range some {
			some[i].Index = indices[i]
		}
		n, err := c.MSRs(some)
		if err != nil {
			return nil, err
		}
		out = append(out, some[:n]...)
		if n < len(some) {
			n++ // one that the list has, but not this processor
		}
		indices = indices[n:]
	}
	return out, nil
}

// check tells what of a state can't be before KVM is asked.
func (s *cpuState) check(xsave int) error {
	switch {
	case len(s.LAPIC) != len(kvm.LAPIC{}):
		return fmt.Errorf("a local APIC of %d bytes", len(s.LAPIC))
	case len(s.XSAVE) != xsave:
		return fmt.Errorf("%d bytes of extended state, where this host has %d", len(s.XSAVE), xsave)
	case len(s.CPUID) == 0 || len(s.CPUID) > kvm.MaxCPUID:
		return fmt.Errorf("%d leaves of CPUID", len(s.CPUID))
	}
	return nil
}

// restore puts a new processor, whose CPUID is set, into a state. The local
// APIC comes after the special registers, which have its base, and before the
// MSRs, which have its deadline.
func (c *vcpu) restore(s *cpuState) error {
	if err := c.setTSC(s.TSCKHz); err != nil {
		return err
	}
	for _, set := range []func() error{
		func() error { return c.cpu.SetMPState(s.MP) },
		func() error { return c.cpu.SetRegs(s.Regs) },
		func() error { return c.cpu.SetSregs(s.Sregs) },
		func() error { return c.cpu.SetXCRS(s.XCRS) },
		func() error { return c.cpu.SetXSAVE(s.XSAVE) },
		func() error { return c.cpu.SetDebugRegs(s.Debug) },
		func() error { return c.cpu.SetLAPIC(kvm.LAPIC(s.LAPIC)) },
		func() error { return writeMSRs(c.cpu, s.MSRs) },
		func() error { return c.cpu.SetEvents(s.Events) },
	} {
		if err := set(); err != nil {
			return err
		}
	}
	return nil
}

// setTSC has the time stamp counter run as it did on another host, in kHz; 0 is
// for a pace that nobody knew. Where the processor can't scale its own, only a
// guest goes on that was never promised a steady counter: it reads KVM's clock,
// which tells it the host's pace.
func (c *vcpu) setTSC(khz int) error {
	if khz == 0 || c.tscKHz == 0 || c.tscKHz == khz {
		return nil
	}
	err := c.cpu.SetTSCKHz(khz)
	if err == nil {
		c.tscKHz = khz
		return nil
	}
	if r := leafExt7.in(c.cpuid); r == nil || *r&invariantTSC == 0 {
		return nil
	}
	return fmt.Errorf("the guest's time stamp counter runs at %d kHz, this host's at %d, and its processor can't scale it (a guest with --cpu %s doesn't mind): %w",
		khz, c.tscKHz, BaselineV2, err)
}

// writeMSRs writes registers. One that the kernel refuses must have its value
// already: some can be read only.
func writeMSRs(c *kvm.VCPU, list []kvm.MSR) error {
	for len(list) > 0 {
		some := list[:min(len(list), kvm.MaxMSRs)]
		n, err := c.SetMSRs(some)
		if err != nil {
			return err
		}
		if n < len(some) {
			is := []kvm.MSR{{Index: some[n].Index}}
			if k, err := c.MSRs(is); err != nil || k == 0 || is[0].Value != some[n].Value {
				return fmt.Errorf("MSR %#x of vCPU %d can't be %#x on this host", some[n].Index, c.ID, some[n].Value)
			}
			n++
		}
		list = list[n:]
	}
	return nil
}
