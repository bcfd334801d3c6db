package accel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests of include/uapi/linux/kvm.h.
const (
	kvmGetAPIVersion       = 0xae00
	kvmCreateVM            = 0xae01
	kvmGetVCPUMmapSize     = 0xae04
	kvmGetSupportedCPUID   = 0xc008ae05
	kvmCreateVCPU          = 0xae41
	kvmSetUserMemoryRegion = 0x4020ae46
	kvmSetTSSAddr          = 0xae47
	kvmRun                 = 0xae80
	kvmSetRegs             = 0x4090ae82
	kvmGetSregs            = 0x8138ae83
	kvmSetSregs            = 0x4138ae84
	kvmSetCPUID2           = 0x4008ae90

	kvmAPIVersion = 12
	exitHalted    = 5 // KVM_EXIT_HLT
)

// Where things are in the guest's memory, and in struct kvm_run.
const (
	memory = 64 << 10
	pml4   = 0x1000
	pdpt   = 0x2000
	pd     = 0x3000
	code   = 0x4000

	runImmediateExit = 1
	runExitReason    = 8
)

// program counts RCX down and halts: two instructions a turn.
var program = []byte{
	0x48, 0xff, 0xc9, // 1: dec %rcx
	0x75, 0xfb, //          jnz 1b
	0xf4, //             hlt
}

// Turns of the loop: in a small fraction of a second an interpreter has done
// the fewer, and a processor so many that getting in and out counts little.
const (
	fewTurns  = 10_000
	manyTurns = 2_000_000
)

type regs struct {
	rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp uint64
	r8, r9, r10, r11, r12, r13, r14, r15   uint64
	rip, rflags                            uint64
}

type segment struct {
	base                        uint64
	limit                       uint32
	selector                    uint16
	typ, present, dpl, db, s, l uint8
	g, avl, unusable, pad       uint8
}

type table struct {
	base  uint64
	limit uint16
	pad   [3]uint16
}

type sregs struct {
	cs, ds, es, fs, gs, ss, tr, ldt segment
	gdt, idt                        table
	cr0, cr2, cr3, cr4, cr8         uint64
	efer, apicBase                  uint64
	interrupts                      [4]uint64
}

type memoryRegion struct {
	slot, flags            uint32
	guest, size, userspace uint64
}

type cpuid struct {
	n, pad  uint32
	entries [256][10]uint32
}

// KVM measures how fast /dev/kvm executes. The device may be there and yet
// not work: then there is an error too.
func KVM() (Speed, error) {
	dev, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return 0, ErrNoDevice
	}
	if err != nil {
		return 0, err
	}
	defer dev.Close()
	g, err := newGuest(int(dev.Fd()))
	if err != nil {
		return 0, fmt.Errorf("run a guest by /dev/kvm: %w", err)
	}
	defer g.close()
	// Once for what is done at first use only.
	if _, err := g.count(1); err != nil {
		return 0, fmt.Errorf("run a guest by /dev/kvm: %w", err)
	}
	speed, err := g.count(fewTurns)
	if err != nil || speed < Enough/10 {
		return speed, err
	}
	return g.count(manyTurns)
}

// guest is a machine with one CPU.
type guest struct {
	vm, vcpu int
	mem, run []byte
}

func ioctl(fd int, req uintptr, arg uintptr) (int, error) {
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, arg)
	if errno != 0 {
		return -1, errno
	}
	return int(r), nil
}

func newGuest(dev int) (_ *guest, err error) {
	if v, err := ioctl(dev, kvmGetAPIVersion, 0); err != nil || v != kvmAPIVersion {
		return nil, fmt.Errorf("its version is %d, not %d: %w", v, kvmAPIVersion, err)
	}
	g := &guest{vm: -1, vcpu: -1}
	defer func() {
		if err != nil {
			g.close()
		}
	}()
	if g.vm, err = ioctl(dev, kvmCreateVM, 0); err != nil {
		return nil, fmt.Errorf("create a machine: %w", err)
	}
	// Intel's need three pages of their own (KVM_SET_TSS_ADDR).
	if _, err = ioctl(g.vm, kvmSetTSSAddr, 0xfffbd000); err != nil {
		return nil, fmt.Errorf("set up a machine: %w", err)
	}
	if g.mem, err = unix.Mmap(-1, 0, memory, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS); err != nil {
		return nil, err
	}
	g.fill()
	region := memoryRegion{size: memory, userspace: uint64(uintptr(unsafe.Pointer(&g.mem[0])))}
	if _, err = ioctl(g.vm, kvmSetUserMemoryRegion, uintptr(unsafe.Pointer(&region))); err != nil {
		return nil, fmt.Errorf("give a machine memory: %w", err)
	}
	if g.vcpu, err = ioctl(g.vm, kvmCreateVCPU, 0); err != nil {
		return nil, fmt.Errorf("create a CPU: %w", err)
	}
	size, err := ioctl(dev, kvmGetVCPUMmapSize, 0)
	if err != nil {
		return nil, err
	}
	if g.run, err = unix.Mmap(g.vcpu, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, err
	}
	return g, g.setup(dev)
}

func (g *guest) close() {
	for _, m := range [][]byte{g.run, g.mem} {
		if m != nil {
			_ = unix.Munmap(m)
		}
	}
	for _, fd := range []int{g.vcpu, g.vm} {
		if fd >= 0 {
			unix.Close(fd)
		}
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
func (g *guest) setup(dev int) error {
	ids := &cpuid{n: uint32(len(cpuid{}.entries))}
	if _, err := ioctl(dev, kvmGetSupportedCPUID, uintptr(unsafe.Pointer(ids))); err != nil {
		return fmt.Errorf("ask for the CPU's features: %w", err)
	}
	if _, err := ioctl(g.vcpu, kvmSetCPUID2, uintptr(unsafe.Pointer(ids))); err != nil {
		return fmt.Errorf("set the CPU's features: %w", err)
	}
	s := &sregs{}
	if _, err := ioctl(g.vcpu, kvmGetSregs, uintptr(unsafe.Pointer(s))); err != nil {
		return err
	}
	data := segment{limit: 0xffffffff, selector: 0x10, typ: 3, present: 1, db: 1, s: 1, g: 1}
	s.ds, s.es, s.fs, s.gs, s.ss = data, data, data, data, data
	s.cs = segment{limit: 0xffffffff, selector: 0x8, typ: 11, present: 1, s: 1, l: 1, g: 1}
	s.cr3, s.cr4 = pml4, 1<<5 // PAE
	s.cr0 = 1<<0 | 1<<4 | 1<<31
	s.efer = 1<<8 | 1<<10 // LME, LMA
	if _, err := ioctl(g.vcpu, kvmSetSregs, uintptr(unsafe.Pointer(s))); err != nil {
		return fmt.Errorf("set the CPU's mode: %w", err)
	}
	return nil
}

// count runs the program and returns how fast it went.
func (g *guest) count(turns uint64) (Speed, error) {
	r := &regs{rcx: turns, rip: code, rflags: 2}
	if _, err := ioctl(g.vcpu, kvmSetRegs, uintptr(unsafe.Pointer(r))); err != nil {
		return 0, err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	stop := g.limit(unix.Gettid())
	defer stop()
	start := time.Now()
	for {
		_, err := ioctl(g.vcpu, kvmRun, 0)
		spent := time.Since(start)
		switch {
		case spent > Limit:
			return 0, fmt.Errorf("%d instructions took longer than %v", 2*turns, Limit)
		case err == unix.EINTR || err == unix.EAGAIN: //nolint:errorlint // errno
			continue
		case err != nil:
			return 0, fmt.Errorf("run the CPU: %w", err)
		}
		if reason := binary.LittleEndian.Uint32(g.run[runExitReason:]); reason != exitHalted {
			return 0, fmt.Errorf("the CPU stopped for reason %d", reason)
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
			g.run[runImmediateExit] = 1
			_ = unix.Tgkill(os.Getpid(), tid, unix.SIGURG) // which Go's runtime takes for its own
			t.Reset(10 * time.Millisecond)
		}
	}()
	return func() {
		close(over)
		<-ended
	}
}
