package vmm

import (
	"fmt"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/vmm/boot"
	"github.com/cleave-project/cleave/vmm/kvm"
)

// vcpu is one processor and the thread that it runs on.
type vcpu struct {
	machine *Machine
	cpu     *kvm.VCPU
	cpuid   []kvm.CPUIDEntry
	// tscKHz is the pace of its time stamp counter, 0 where the host has no
	// stable one. KVM tells it only while the processor is out of the guest.
	tscKHz int

	mu     sync.Mutex
	thread int // 0 while there is none
}

// Bits of control registers (SDM volume 3, 2.5).
const (
	cr0PE, cr0ET, cr0PG = 1 << 0, 1 << 4, 1 << 31
	cr4PAE              = 1 << 5
	eferLME, eferLMA    = 1 << 8, 1 << 10
)

// addCPUs makes a processor for each answer to CPUID. All but the first wait
// until that wakes them.
func (m *Machine) addCPUs(cpuid [][]kvm.CPUIDEntry) error {
	for i, leaves := range cpuid {
		c, err := m.vm.CreateVCPU(i)
		if err != nil {
			return err
		}
		v := &vcpu{machine: m, cpu: c, cpuid: leaves}
		v.tscKHz, _ = c.TSCKHz()
		m.cpus = append(m.cpus, v)
		if err := c.SetCPUID(leaves); err != nil {
			return err
		}
	}
	return nil
}

// enter puts a processor into the state that a kernel expects.
func enter(c *kvm.VCPU, e *boot.Entry) error {
	s, err := c.Sregs()
	if err != nil {
		return err
	}
	s.GDT = kvm.DescriptorTable{Base: e.GDT, Limit: e.GDTLimit}
	s.IDT = kvm.DescriptorTable{}
	flat := kvm.Segment{Limit: 0xffffffff, Type: 3, Present: 1, DB: 1, S: 1, G: 1, Selector: boot.DataSelector}
	s.DS, s.ES, s.FS, s.GS, s.SS = flat, flat, flat, flat, flat
	s.CS = flat
	s.CS.Selector, s.CS.Type = boot.CodeSelector, 11
	s.TR = kvm.Segment{Limit: 0x67, Type: 11, Present: 1, Selector: boot.TaskSelector}
	s.CR0 = cr0PE | cr0ET
	if e.Long {
		s.CS.DB, s.CS.L = 0, 1
		s.CR3, s.CR4 = e.CR3, cr4PAE
		s.CR0 |= cr0PG
		s.EFER = eferLME | eferLMA
	}
	if err := c.SetSregs(s); err != nil {
		return err
	}
	return c.SetRegs(kvm.Regs{RIP: e.RIP, RAX: e.RAX, RSI: e.RSI, RBX: e.RBX, RFLAGS: 2})
}

// run is the processor's life, on a thread of its own.
func (c *vcpu) run() {
	runtime.LockOSThread() // never unlocked: the thread ends with it
	c.setThread(unix.Gettid())
	defer c.setThread(0)
	m := c.machine
	defer m.gate.leave()
	if m.thread != nil {
		if err := m.thread(); err != nil {
			m.finish(End{}, err)
			return
		}
	}
	unfinished := false
	for {
		// The order closes the gap: a kick after this line makes Run return at
		// once; one before it is seen in what follows.
		c.cpu.SetImmediateExit(false)
		if m.gate.pass(unfinished) {
			c.cpu.SetImmediateExit(true)
		}
		if m.done.Load() {
			return
		}
		reason, err := c.cpu.Run()
		unfinished = err == nil
		switch {
		case err == unix.EINTR || err == unix.EAGAIN:
			continue
		case err != nil:
			m.finish(End{}, fmt.Errorf("run vCPU %d: %w", c.cpu.ID, err))
			return
		}
		if err := c.handle(reason); err != nil {
			m.finish(End{}, err)
			return
		}
	}
}

// handle deals with what made the guest leave.
func (c *vcpu) handle(reason kvm.Reason) error {
	m := c.machine
	switch reason {
	case kvm.ExitIO:
		x, err := c.cpu.IO()
		if err != nil {
			return err
		}
		for p := x.Data; len(p) > 0; p = p[x.Size:] {
			if x.In {
				m.ports.Read(uint64(x.Port), p[:x.Size])
			} else {
				m.ports.Write(uint64(x.Port), p[:x.Size])
			}
		}
	case kvm.ExitMMIO:
		x, err := c.cpu.MMIO()
		if err != nil {
			return err
		}
		if x.Write {
			m.mmio.Write(x.Addr, x.Data)
		} else {
			m.mmio.Read(x.Addr, x.Data)
		}
	case kvm.ExitIntr:
	case kvm.ExitDirtyRingFull:
		return m.rings.empty()
	case kvm.ExitShutdown:
		m.finish(End{Reason: TripleFault, faulty: c}, nil)
	case kvm.ExitSystemEvent:
		end := map[kvm.SystemEvent]Reason{kvm.EventShutdown: PowerOff, kvm.EventReset: Restart}[c.cpu.SystemEvent()]
		if end == "" {
			return c.cpu.Failure(reason)
		}
		m.finish(End{Reason: end}, nil)
	default:
		return c.cpu.Failure(reason)
	}
	return nil
}

func (c *vcpu) setThread(tid int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.thread = tid
}

// kick has the processor leave the guest, or not enter it.
func (c *vcpu) kick() {
	c.cpu.SetImmediateExit(true)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.thread != 0 {
		// The Go runtime's own signal, which it expects at any time and takes
		// no notice of.
		_ = unix.Tgkill(unix.Getpid(), c.thread, unix.SIGURG)
	}
}
