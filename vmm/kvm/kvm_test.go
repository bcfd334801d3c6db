package kvm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The sizes are those of linux/kvm.h: what the numbers of the calls say too.
func TestStructuresHaveTheKernelsSizes(t *testing.T) {
	for _, s := range []struct {
		name      string
		got, want uintptr
	}{
		{"regs", unsafe.Sizeof(Regs{}), 0x90},
		{"sregs", unsafe.Sizeof(Sregs{}), 0x138},
		{"fpu", unsafe.Sizeof(FPU{}), 0x1a0},
		{"events", unsafe.Sizeof(VCPUEvents{}), 0x40},
		{"debugregs", unsafe.Sizeof(DebugRegs{}), 0x80},
		{"xcrs", unsafe.Sizeof(XCRS{}), 0x188},
		{"cpuid", unsafe.Sizeof(CPUIDEntry{}), 0x28},
		{"msr", unsafe.Sizeof(MSR{}), 0x10},
		{"clock", unsafe.Sizeof(ClockData{}), 0x30},
		{"irqchip", unsafe.Sizeof(IRQChip{}), 0x208},
		{"lapic", unsafe.Sizeof(LAPIC{}), 0x400},
	} {
		if s.got != s.want {
			t.Errorf("%s: %#x bytes, want %#x", s.name, s.got, s.want)
		}
	}
}

// open skips where there is no KVM; one that only emulates is good enough.
func open(t *testing.T) *System {
	t.Helper()
	s, err := Open()
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		t.Skipf("no KVM: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// machine is one vCPU in real mode with 64 KiB of memory.
type machine struct {
	*VM
	cpu *VCPU
	mem []byte
}

// load makes a machine that is about to execute code at 0x1000, on this
// goroutine's thread.
func load(t *testing.T, code []byte, chip bool) *machine {
	t.Helper()
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	vm, err := open(t).CreateVM()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { vm.Close() })
	if chip {
		if err := vm.CreateIRQChip(); err != nil {
			t.Fatal(err)
		}
	}
	mem, err := unix.Mmap(-1, 0, 64<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(mem) })
	copy(mem[0x1000:], code)
	if err := vm.SetMemory(0, MemLogDirty, 0, mem); err != nil {
		t.Fatal(err)
	}
	c, err := vm.CreateVCPU(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	sregs, err := c.Sregs()
	if err != nil {
		t.Fatal(err)
	}
	sregs.CS.Base, sregs.CS.Selector = 0, 0
	if err := c.SetSregs(sregs); err != nil {
		t.Fatal(err)
	}
	if err := c.SetRegs(Regs{RIP: 0x1000, RFLAGS: 2, RSP: 0x8000}); err != nil {
		t.Fatal(err)
	}
	return &machine{vm, c, mem}
}

// run enters the guest until it leaves it for a reason.
func (m *machine) run(t *testing.T, want Reason) {
	t.Helper()
	for {
		r, err := m.cpu.Run()
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if r != want {
			t.Fatalf("left for reason %d, want %d: %v", r, want, m.cpu.Failure(r))
		}
		return
	}
}

func TestPortsHaltAndRegisters(t *testing.T) {
	m := load(t, []byte{
		0xba, 0xf8, 0x03, // mov dx, 0x3f8
		0xb0, 'A', // mov al, 'A'
		0xee,       // out dx, al
		0xe5, 0x60, // in ax, 0x60
		0xf4, // hlt
	}, false)
	m.run(t, ExitIO)
	x, err := m.cpu.IO()
	if err != nil || x.In || x.Port != 0x3f8 || string(x.Data) != "A" {
		t.Fatalf("got %+v, %v", x, err)
	}
	m.run(t, ExitIO)
	if x, err = m.cpu.IO(); err != nil || !x.In || x.Port != 0x60 || x.Size != 2 {
		t.Fatalf("got %+v, %v", x, err)
	}
	binary.NativeEndian.PutUint16(x.Data, 0xbeef)
	m.run(t, ExitHLT)
	if r, err := m.cpu.Regs(); err != nil || r.RAX&0xffff != 0xbeef || r.RIP != 0x1009 {
		t.Errorf("got %+v, %v", r, err)
	}
}

func TestMemoryThatIsNotThereIsTheMonitors(t *testing.T) {
	m := load(t, []byte{
		0xb8, 0x00, 0xa0, // mov ax, 0xa000
		0x8e, 0xd8, // mov ds, ax
		0xc6, 0x06, 0x34, 0x12, 0x2a, // mov byte [0x1234], 42
		0xa0, 0x35, 0x12, // mov al, [0x1235]
		0xf4,
	}, false)
	m.run(t, ExitMMIO)
	x, err := m.cpu.MMIO()
	if err != nil || !x.Write || x.Addr != 0xa1234 || !bytes.Equal(x.Data, []byte{42}) {
		t.Fatalf("got %+v, %v", x, err)
	}
	m.run(t, ExitMMIO)
	if x, err = m.cpu.MMIO(); err != nil || x.Write || x.Addr != 0xa1235 || len(x.Data) != 1 {
		t.Fatalf("got %+v, %v", x, err)
	}
	x.Data[0] = 7
	m.run(t, ExitHLT)
	if r, _ := m.cpu.Regs(); r.RAX&0xff != 7 {
		t.Errorf("al is %#x", r.RAX)
	}
}

func TestWrittenPagesAreLogged(t *testing.T) {
	m := load(t, []byte{0xc6, 0x06, 0x10, 0x50, 0x01, 0xf4}, false) // mov byte [0x5010], 1; hlt
	bitmap := make([]uint64, 1)
	if err := m.DirtyLog(0, bitmap); err != nil {
		t.Fatal(err)
	}
	m.run(t, ExitHLT)
	if err := m.DirtyLog(0, bitmap); err != nil {
		t.Fatal(err)
	}
	if bitmap[0] != 1<<5 || m.mem[0x5010] != 1 {
		t.Errorf("pages %#x are dirty", bitmap[0])
	}
	if err := m.DirtyLog(0, bitmap); err != nil || bitmap[0] != 0 {
		t.Errorf("the next round begins with %#x, %v", bitmap[0], err)
	}
}

func TestPortWritesCountAnEvent(t *testing.T) {
	m := load(t, []byte{0xb0, 5, 0xe6, 0x77, 0xe6, 0x78, 0xf4}, false) // out 0x77, al; out 0x78, al; hlt
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	e := IOEvent{Addr: 0x77, Size: 1, Port: true, EventFD: fd}
	if err := m.IOEventFD(e, true); err != nil {
		t.Fatal(err)
	}
	m.run(t, ExitIO)
	if x, err := m.cpu.IO(); err != nil || x.Port != 0x78 {
		t.Errorf("got %+v, %v: want the other port only", x, err)
	}
	b := make([]byte, 8)
	if _, err := unix.Read(fd, b); err != nil || binary.NativeEndian.Uint64(b) != 1 {
		t.Errorf("the event counted %d, %v", binary.NativeEndian.Uint64(b), err)
	}
	if err := m.IOEventFD(e, false); err != nil {
		t.Error(err)
	}
}

func TestImmediateExitComesBeforeTheGuest(t *testing.T) {
	m := load(t, []byte{0xeb, 0xfe}, false) // jmp $
	m.cpu.SetImmediateExit(true)
	if _, err := m.cpu.Run(); err != unix.EINTR {
		t.Fatalf("got %v", err)
	}
	m.cpu.SetImmediateExit(false)
}

// A signal ends a Run in which the guest would stay for ever.
func TestKickEndsRun(t *testing.T) {
	m := load(t, []byte{0xeb, 0xfe}, false)
	tid := unix.Gettid()
	stop := time.AfterFunc(50*time.Millisecond, func() {
		m.cpu.SetImmediateExit(true)
		_ = unix.Tgkill(unix.Getpid(), tid, unix.SIGURG) // the runtime takes it for one of its own
	})
	defer stop.Stop()
	for {
		if _, err := m.cpu.Run(); err == unix.EINTR && m.cpu.page[offImmediateExit] == 1 {
			break
		} else if err != nil && err != unix.EINTR && err != unix.EAGAIN {
			t.Fatal(err)
		}
	}
}

func TestStateIsWhatWasSet(t *testing.T) {
	m := load(t, []byte{0xf4}, true)
	cpuid, err := m.sys.SupportedCPUID()
	if err != nil || len(cpuid) < 10 {
		t.Fatalf("%d leaves, %v", len(cpuid), err)
	}
	if err := m.cpu.SetCPUID(cpuid); err != nil {
		t.Fatal(err)
	}
	fpu, err := m.cpu.FPU()
	if err != nil {
		t.Fatal(err)
	}
	fpu.XMM[3][5] = 99
	if err := m.cpu.SetFPU(fpu); err != nil {
		t.Fatal(err)
	}
	if got, err := m.cpu.FPU(); err != nil || got != fpu {
		t.Errorf("floating point: got %+v, %v", got, err)
	}
	const starMSR = 0xc0000081
	if n, err := m.cpu.SetMSRs([]MSR{{Index: starMSR, Value: 0x1234}}); err != nil || n != 1 {
		t.Fatalf("set %d MSRs, %v", n, err)
	}
	list := []MSR{{Index: starMSR}}
	if n, err := m.cpu.MSRs(list); err != nil || n != 1 || list[0].Value != 0x1234 {
		t.Errorf("MSRs: got %+v, %d, %v", list, n, err)
	}
	xsave := make([]byte, m.XSAVESize())
	for _, err := range []error{
		m.cpu.XSAVE(xsave), m.cpu.SetXSAVE(xsave),
		second(m.cpu.LAPIC()), second(m.cpu.XCRS()), second(m.cpu.DebugRegs()), second(m.cpu.Events()),
		second(m.IRQChip(0)), second(m.IRQChip(2)), second(m.cpu.TSCKHz()),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	clock, err := m.Clock()
	if err != nil {
		t.Fatal(err)
	}
	clock.Clock += uint64(time.Hour)
	if err := m.SetClock(clock); err != nil {
		t.Fatal(err)
	}
	if now, err := m.Clock(); err != nil || now.Clock < clock.Clock {
		t.Errorf("the clock was set to %d and is %d, %v", clock.Clock, now.Clock, err)
	}
	if s, err := m.cpu.MPState(); err != nil || s != MPRunnable {
		t.Errorf("state %d, %v", s, err)
	}
	if list, err := m.sys.MSRs(); err != nil || len(list) < 10 {
		t.Errorf("%d MSRs, %v", len(list), err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestRoutesAndMessages(t *testing.T) {
	m := load(t, []byte{0xf4}, true)
	if err := m.SetRoutes([]Route{{GSI: 4, Chip: 2, Pin: 4}, {GSI: 24, MSI: true, Addr: 0xfee00000, Data: 0x40}}); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := m.IRQFD(fd, 24, true); err != nil {
		t.Fatal(err)
	}
	if err := m.IRQFD(fd, 24, false); err != nil {
		t.Fatal(err)
	}
	if err := m.IRQLine(4, true); err != nil {
		t.Error(err)
	}
	if _, err := m.SignalMSI(0xfee00000, 0x41); err != nil {
		t.Error(err)
	}
	if err := m.SetRoutes(make([]Route, maxRoutes+1)); err == nil {
		t.Error("too many routes are taken")
	}
}

func TestWhatIsNoKVMIsRefused(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := FromFile(f); err == nil {
		t.Error("/dev/null passes for KVM")
	}
}
