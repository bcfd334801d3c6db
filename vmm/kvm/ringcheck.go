package kvm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// checkPages are what the guest of CheckRings writes: more than its ring holds,
// which is as small as Linux has one.
const (
	checkEntries = 1024
	checkPages   = checkEntries + 128
	checkFirst   = 0x100000
	checkLimit   = 10 * time.Second
)

// ErrRings is that a kernel's rings can't be relied on.
var ErrRings = errors.New("this kernel's KVM can't be relied on to note in rings what guests write")

// CheckRings tries rings out. A vCPU has to leave the guest before its ring is
// full, and some kernels, such as one that runs guests without the processor's
// help, have the capability and don't see to that: what is written then is
// lost, or the guest never runs again.
func (s *System) CheckRings() error {
	if n, err := s.Check(CapDirtyRing); err != nil || n == 0 {
		return fmt.Errorf("%w: it has none", ErrRings)
	}
	vm, err := s.CreateVM()
	if err != nil {
		return err
	}
	defer vm.Close()
	if err := vm.useRings(checkEntries); err != nil {
		return err
	}
	mem, err := unix.Mmap(-1, 0, checkFirst+checkPages*4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANON)
	if err != nil {
		return fmt.Errorf("memory to try rings with: %w", err)
	}
	defer unix.Munmap(mem) //nolint:errcheck // of a mapping that is there
	copy(mem[checkCode:], writesPages())
	if err := vm.SetMemory(0, MemLogDirty, 0, mem); err != nil {
		return err
	}
	c, err := vm.CreateVCPU(0)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.enterFlat(); err != nil {
		return err
	}
	return vm.checkRing(c)
}

// checkRing runs the guest to its end, and looks whether all was noted.
func (v *VM) checkRing(c *VCPU) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	thread := unix.Gettid()
	stop := time.AfterFunc(checkLimit, func() {
		c.SetImmediateExit(true)
		_ = unix.Tgkill(unix.Getpid(), thread, unix.SIGURG)
	})
	defer stop.Stop()
	noted := make([]bool, checkPages)
	end := time.Now().Add(checkLimit)
	for {
		reason, err := c.Run()
		switch {
		case time.Now().After(end):
			return fmt.Errorf("%w: a guest doesn't go on", ErrRings)
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		case err != nil:
			return fmt.Errorf("try rings: %w", err)
		case reason != ExitDirtyRingFull && reason != ExitHLT:
			return fmt.Errorf("try rings: %w", c.Failure(reason))
		}
		err = c.TakeDirty(func(_ uint32, page uint64) {
			if n := int(page) - checkFirst/4096; n >= 0 && n < checkPages {
				noted[n] = true
			}
		})
		if err != nil {
			return fmt.Errorf("%w: %w", ErrRings, err)
		}
		if err := v.ResetRings(); err != nil {
			return err
		}
		if reason == ExitHLT {
			break
		}
	}
	for n, ok := range noted {
		if !ok {
			return fmt.Errorf("%w: page %d of %d wasn't noted", ErrRings, n, checkPages)
		}
	}
	return nil
}

// checkCode is where the guest begins.
const checkCode = 0x1000

// writesPages is a program that writes to each page, and halts.
func writesPages() []byte {
	le := binary.LittleEndian
	b := le.AppendUint32([]byte{0xbf}, checkFirst)                               // mov edi, first
	b = append(b, 0xc6, 0x07, 0x01)                                              // mov byte [edi], 1
	b = le.AppendUint32(append(b, 0x81, 0xc7), 4096)                             // add edi, 4096
	b = le.AppendUint32(append(b, 0x81, 0xff), checkFirst+checkPages*4096)       // cmp edi, end
	return append(b, 0x72, 0xef /* jb to the mov */, 0xf4 /* hlt */, 0xeb, 0xfd) // jmp to the hlt
}

// enterFlat has it begin at checkCode in 32-bit protected mode.
func (c *VCPU) enterFlat() error {
	s, err := c.Sregs()
	if err != nil {
		return err
	}
	flat := Segment{Limit: 0xffffffff, Type: 3, Present: 1, DB: 1, S: 1, G: 1, Selector: 16}
	s.DS, s.ES, s.FS, s.GS, s.SS = flat, flat, flat, flat, flat
	s.CS = flat
	s.CS.Selector, s.CS.Type = 8, 11
	s.CR0 |= 1 // PE
	if err := c.SetSregs(s); err != nil {
		return err
	}
	return c.SetRegs(Regs{RIP: checkCode, RFLAGS: 2})
}
