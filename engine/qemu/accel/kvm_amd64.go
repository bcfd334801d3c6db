package accel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/vmm/kvm"
)

// Where things are in the guest's memory.
const (
	memory = 64 << 10
	pml4   = 0x1000
	pdpt   = 0x2000
	pd     = 0x3000
	code   = 0x4000
)

// program counts RCX down and halts: two instructions a turn.
var program = []byte{
	0x48, 0xff, 0xc9, // 1: dec %rcx
	0x75, 0xfb, //          jnz 1b
	0xf4, //             hlt
}

// Turns of the loop: ten times as many each time, from few, until they take
// so long that getting in and out counts little, or are many. An interpreter
// takes that long for 200,000 instructions; a processor that is emulated with
// all of its virtualization takes milliseconds to get in and out.
const (
	fewTurns  = 10_000
	manyTurns = 10_000_000
	longRun   = 100 * time.Millisecond
)

// KVM measures how fast /dev/kvm executes. The device may be there and yet
// not work: then there is an error too.
func KVM() (Speed, error) {
	sys, err := kvm.Open()
	if errors.Is(err, os.ErrNotExist) {
		return 0, ErrNoDevice
	}
	if err != nil {
		return 0, err
	}
	defer sys.Close()
	g, err := newGuest(sys)
	if err != nil {
		return 0, fmt.Errorf("run a guest by /dev/kvm: %w", err)
	}
	defer g.close()
	// Once for what is done at first use only.
	if _, err := g.count(1); err != nil {
		return 0, fmt.Errorf("run a guest by /dev/kvm: %w", err)
	}
	for turns := uint64(fewTurns); ; turns *= 10 {
		speed, err := g.count(turns)
		if err != nil || turns == manyTurns || float64(2*turns)/float64(speed) >= longRun.Seconds() {
			return speed, err
		}
	}
}

// guest is a machine with one CPU, as far as it came.
type guest struct {
	vm   *kvm.VM
	vcpu *kvm.VCPU
	mem  []byte
}

func newGuest(sys *kvm.System) (_ *guest, err error) {
	g := &guest{}
	defer func() {
		if err != nil {
			g.close()
		}
	}()
	if g.vm, err = sys.CreateVM(); err != nil {
		return nil, err
	}
	if err = g.vm.ReservePages(); err != nil {
		return nil, err
	}
	if g.mem, err = unix.Mmap(-1, 0, memory, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS); err != nil {
		return nil, err
	}
	g.fill()
	if err = g.vm.SetMemory(0, 0, 0, g.mem); err != nil {
		return nil, err
	}
	if g.vcpu, err = g.vm.CreateVCPU(0); err != nil {
		return nil, err
	}
	return g, g.setup(sys)
}

func (g *guest) close() {
	if g.vcpu != nil {
		_ = g.vcpu.Close()
	}
	if g.vm != nil {
		_ = g.vm.Close()
	}
	if g.mem != nil {
		_ = unix.Munmap(g.mem)
	}
}

// fill writes the program, and tables that map the first 2 MiB to
// themselves (Intel SDM 3A, 4.5).
func (g *guest) fill() {
	const present, writable, large = 1, 2, 1 << 7
	binary.LittleEndian.PutUint64(g.mem[pml4:], pdpt|present|writable)
	binary.LittleEndian.PutUint64(g.mem[pdpt:], pd|present|writable)
	binary.LittleEndian.PutUint64(g.mem[pd:], present|writable|large)
	copy(g.mem[code:], program)
}

// setup puts the CPU into 64-bit mode.
func (g *guest) setup(sys *kvm.System) error {
	ids, err := sys.SupportedCPUID()
	if err != nil {
		return err
	}
	if err := g.vcpu.SetCPUID(ids); err != nil {
		return err
	}
	s, err := g.vcpu.Sregs()
	if err != nil {
		return err
	}
	data := kvm.Segment{Limit: 0xffffffff, Selector: 0x10, Type: 3, Present: 1, DB: 1, S: 1, G: 1}
	s.DS, s.ES, s.FS, s.GS, s.SS = data, data, data, data, data
	s.CS = kvm.Segment{Limit: 0xffffffff, Selector: 0x8, Type: 11, Present: 1, S: 1, L: 1, G: 1}
	s.CR3, s.CR4 = pml4, 1<<5 // PAE
	s.CR0 = 1<<0 | 1<<4 | 1<<31
	s.EFER = 1<<8 | 1<<10 // LME, LMA
	return g.vcpu.SetSregs(s)
}

// count runs the program and returns how fast it went.
func (g *guest) count(turns uint64) (Speed, error) {
	if err := g.vcpu.SetRegs(kvm.Regs{RCX: turns, RIP: code, RFLAGS: 2}); err != nil {
		return 0, err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	stop := g.limit(unix.Gettid())
	defer stop()
	start := time.Now()
	for {
		reason, err := g.vcpu.Run()
		spent := time.Since(start)
		switch {
		case spent > Limit:
			return 0, fmt.Errorf("%d instructions took longer than %v", 2*turns, Limit)
		case err == unix.EINTR || err == unix.EAGAIN: //nolint:errorlint // errno
			continue
		case err != nil:
			return 0, fmt.Errorf("run the CPU: %w", err)
		}
		if reason != kvm.ExitHLT {
			return 0, g.vcpu.Failure(reason)
		}
		return Speed(float64(2*turns) / max(spent.Seconds(), 1e-9)), nil
	}
}

// limit gets a thread out of the guest when the time is over: by a signal,
// again and again, since one may come just before the guest is entered.
func (g *guest) limit(tid int) (stop func()) {
	over, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		t := time.NewTimer(Limit)
		defer t.Stop()
		for {
			select {
			case <-over:
				return
			case <-t.C:
			}
			g.vcpu.SetImmediateExit(true)
			_ = unix.Tgkill(os.Getpid(), tid, unix.SIGURG) // which Go's runtime takes for its own
			t.Reset(10 * time.Millisecond)
		}
	}()
	return func() {
		close(over)
		<-ended
	}
}
