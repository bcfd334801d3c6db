package kvm

// The structures of linux/kvm.h and asm/kvm.h, field by field. They are what
// is saved of a machine as well, so they hold no padding that could differ.

// Regs are the general purpose registers.
type Regs struct {
	RAX, RBX, RCX, RDX uint64
	RSI, RDI, RSP, RBP uint64
	R8, R9, R10, R11   uint64
	R12, R13, R14, R15 uint64
	RIP, RFLAGS        uint64
}

// Segment is a segment register with its hidden part.
type Segment struct {
	Base                           uint64
	Limit                          uint32
	Selector                       uint16
	Type                           uint8
	Present, DPL, DB, S, L, G, AVL uint8
	Unusable                       uint8
	_                              uint8
}

// DescriptorTable is GDTR or IDTR.
type DescriptorTable struct {
	Base  uint64
	Limit uint16
	_     [3]uint16
}

// Sregs are the special registers.
type Sregs struct {
	CS, DS, ES, FS, GS, SS  Segment
	TR, LDT                 Segment
	GDT, IDT                DescriptorTable
	CR0, CR2, CR3, CR4, CR8 uint64
	EFER, APICBase          uint64
	InterruptBitmap         [4]uint64
}

// FPU is the x87 and SSE state as Linux keeps it; XSAVE has it and more.
type FPU struct {
	FPR            [8][16]byte
	FCW, FSW       uint16
	FTWX           uint8
	_              uint8
	LastOpcode     uint16
	LastIP, LastDP uint64
	XMM            [16][16]byte
	MXCSR          uint32
	_              uint32
}

// LAPIC is the page of the local APIC's registers (SDM volume 3, 11.4.1).
type LAPIC [1024]byte

// MPState tells how a vCPU stands among the others (api.rst, 4.38).
type MPState uint32

// States of a vCPU.
const (
	MPRunnable      MPState = 0
	MPUninitialized MPState = 1 // waits for INIT
	MPInitReceived  MPState = 2 // waits for SIPI
	MPHalted        MPState = 3
	MPSIPIReceived  MPState = 4
)

// VCPUEvents are exceptions, interrupts, NMIs and SMIs in flight.
type VCPUEvents struct {
	Exception struct {
		Injected, Number, HasErrorCode, Pending uint8
		ErrorCode                               uint32
	}
	Interrupt           struct{ Injected, Number, Soft, Shadow uint8 }
	NMI                 struct{ Injected, Pending, Masked, _ uint8 }
	SIPIVector          uint32
	Flags               uint32
	SMI                 struct{ SMM, Pending, SMMInsideNMI, LatchedInit uint8 }
	TripleFault         struct{ Pending uint8 }
	_                   [26]uint8
	ExceptionHasPayload uint8
	ExceptionPayload    uint64
}

// DebugRegs are DR0 to DR7.
type DebugRegs struct {
	DB       [4]uint64
	DR6, DR7 uint64
	Flags    uint64
	_        [9]uint64
}

// XCRS are the extended control registers.
type XCRS struct {
	N, Flags uint32
	XCRs     [16]struct {
		Number, _ uint32
		Value     uint64
	}
	_ [16]uint64
}

// CPUIDEntry is one leaf of CPUID.
type CPUIDEntry struct {
	Function, Index, Flags uint32
	EAX, EBX, ECX, EDX     uint32
	_                      [3]uint32
}

// CPUIDIndexed in Flags says that Index matters.
const CPUIDIndexed = 1

type cpuidMessage struct {
	n, _    uint32
	entries [MaxCPUID]CPUIDEntry
}

// MSR is a model specific register.
type MSR struct {
	Index, _ uint32
	Value    uint64
}

// ClockData is kvm-clock's state.
type ClockData struct {
	Clock    uint64 // ns
	Flags    uint32
	_        uint32
	Realtime uint64 // ns; valid with ClockRealtime
	HostTSC  uint64
	_        [4]uint32
}

// ClockRealtime in Flags says that Realtime is the host's time at Clock; on
// setting, that the clock shall advance by what passed since.
const ClockRealtime = 1 << 2

// IRQChip is the state of an interrupt controller.
type IRQChip struct {
	ID, _ uint32
	State [512]byte
}
