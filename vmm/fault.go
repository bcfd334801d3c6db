package vmm

import (
	"fmt"
	"strings"
)

// resetRIP is where a processor begins (SDM volume 3, 10.1.4), below resetVector.
const resetRIP = 0xfff0

// fault tells where a processor was that gave up: what one looks up in the
// guest's kernel. It is empty where KVM doesn't say.
//
// KVM resets AMD's processors when they give up by themselves, since what they
// leave of their state is undefined (AMD volume 2, 15.14.3).
func (c *vcpu) fault() string {
	r, err := c.cpu.Regs()
	if err != nil {
		return ""
	}
	s, err := c.cpu.Sregs()
	if err != nil {
		return ""
	}
	if r.RIP == resetRIP && s.CR0&cr0PE == 0 {
		return unknownFault(c.cpu.ID)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "vCPU %d at %#x, stack %#x, flags %#x, CR0 %#x, CR2 %#x, CR3 %#x, CR4 %#x, EFER %#x, CS %#x, IDT %#x",
		c.cpu.ID, r.RIP, r.RSP, r.RFLAGS, s.CR0, s.CR2, s.CR3, s.CR4, s.EFER, s.CS.Selector, s.IDT.Base)
	if e, err := c.cpu.Events(); err == nil {
		x := e.Exception
		switch {
		case x.Injected != 0 || x.Pending != 0:
			fmt.Fprintf(&b, ", in exception %d (error %#x)", x.Number, x.ErrorCode)
		case e.Interrupt.Injected != 0:
			fmt.Fprintf(&b, ", in interrupt %d", e.Interrupt.Number)
		}
	}
	return b.String()
}

func unknownFault(id int) string {
	return fmt.Sprintf("vCPU %d, whose state KVM doesn't keep on this processor", id)
}
