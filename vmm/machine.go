package vmm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"github.com/cleave-project/cleave/vmm/acpi"
	"github.com/cleave-project/cleave/vmm/boot"
	"github.com/cleave-project/cleave/vmm/bus"
	"github.com/cleave-project/cleave/vmm/kvm"
	"github.com/cleave-project/cleave/vmm/memory"
	"github.com/cleave-project/cleave/vmm/pci"
	"github.com/cleave-project/cleave/vmm/serial"
)

// The machine's map below 4 GiB, and its ports and interrupts.
const (
	lowWindow    = memory.HoleStart
	ecamAddr     = 0xe0000000
	ioapicAddr   = 0xfec00000
	lapicAddr    = 0xfee00000
	highWindow   = 1 << 38 // above what memory there may be
	highWindowTo = 1<<39 - 1
	maxMemory    = highWindow - memory.HoleEnd
	maxCPUs      = 254 // whose APIC ids have 8 bits

	// generationAddr is below the ACPI tables, in what no kernel uses.
	generationAddr = boot.ACPIAddr - memory.PageSize

	serialPort = 0x3f8
	serialGSI  = 4
	eventGSI   = 9

	portSleep = 0x600
	portReset = 0x604
	portEvent = 0x608
	portSlots = 0x610
	// portExit ends a test's guest: kvm-unit-tests' isa-debug-exit.
	portExit = 0xf4
)

// Config is what a machine is made of.
type Config struct {
	CPUs   int
	Memory uint64 // bytes, whole pages
	// Pluggable is how much a memory device (package mem) may add to that, from
	// memory.PluggableAddr(Memory) on.
	Pluggable uint64
	// Mapped is what else is in its memory: for persistent memory.
	Mapped []Mapped
	// DirtyRing has KVM note written pages in rings instead of bitmaps, where
	// somebody wants to know them: that takes time by what is written, not by
	// how much memory there is.
	DirtyRing bool
	// Faults is an open memory.FaultDevice, or nil: with it a guest that comes
	// from another host may run before all of its memory is here.
	Faults *os.File
	// HugePages has the memory in pages of 2 MiB, which the host must have set
	// aside. What the guest gives back, it keeps then.
	HugePages bool
	// CPU is what the processors are: a Baseline, or "" for the host's.
	CPU   string
	Linux boot.Linux
	// Console is where the serial port sends to.
	Console io.Writer
	// Devices are its devices at the start. They stay the caller's: once the
	// machine is closed they are idle, and may go into another.
	Devices []Device
	// Ejected is called when a device has left the running machine, which it
	// may without being asked to. It must not block.
	Ejected func(Device)
	// Thread, if there is one, is called first on each vCPU's thread.
	Thread func() error
}

// Mapped is memory of the host's that the guest finds at an address and can
// only read. It has to stay until Close. A device that is told by the guest to
// write there does, so it is a private copy if it is a file's.
type Mapped struct {
	Addr uint64
	Host []byte // whole pages
}

// MappedAddr is the first address for Mapped in a machine.
func MappedAddr(ram, pluggable uint64) uint64 {
	const unit = 2 << 30 // of the largest sections that Linux takes
	return (memory.PluggableAddr(ram) + pluggable + unit - 1) / unit * unit
}

// fits tells whether so much memory is below what else there is.
func fits(ram, pluggable uint64) bool {
	return ram <= maxMemory && pluggable <= maxMemory && memory.PluggableAddr(ram)+pluggable <= highWindow
}

// Reason is why a machine ended.
type Reason string

// Reasons.
const (
	PowerOff    Reason = "power-off"
	Restart     Reason = "reset" // asked for by the guest, or by Reset
	TripleFault Reason = "triple-fault"
	Stopped     Reason = "stopped" // by Stop, or the end of Run's context
	TestExit    Reason = "test-exit"
)

// End is how a machine ended.
type End struct {
	Reason Reason
	Code   int // with TestExit: what was written
	// Where tells, with TripleFault, where the processor was.
	Where  string
	faulty *vcpu
}

// Machine is one guest. Run may be called once; the other methods may be
// called at any time until Close.
type Machine struct {
	memory     *memory.Memory
	vm         *kvm.VM
	interrupts interrupts
	rings      *rings // nil where bitmaps tell what is written
	ports      bus.Bus
	mmio       bus.Bus
	pci        *pci.Bus
	cpus       []*vcpu
	serial     *serial.UART
	power      *powerPorts
	slots      *slotPorts
	ejected    func(Device)
	thread     func() error

	mu        sync.Mutex
	functions []*function
	started   bool

	once sync.Once
	end  End
	err  error
	done atomic.Bool
	// moving is that there is a move.
	moving atomic.Bool
	// ended is closed with done.
	ended chan struct{}
	gate  gate

	life   sync.Mutex // held by who pauses or lets go on
	paused bool
	clock  kvm.ClockData // while it is paused
	move   *Move         // on its way, or nil
	frozen bool          // by that: nobody else lets the guest go on
	saved  string        // the snapshot since which is noted what is written
	msrs   []uint32      // of which its processors' state consists

	// Of a guest that comes from another host, what of its memory isn't here
	// yet; nil without a way to wait for that, which faults is.
	absent   *memory.Absent
	awaiting bool // its devices and processors may use memory: it comes in pages
	faults   *os.File
}

// New puts a machine together and its kernel into its memory.
func New(sys *kvm.System, c Config) (_ *Machine, err error) {
	switch {
	case !fits(c.Memory, c.Pluggable):
		return nil, fmt.Errorf("%d GiB of memory are more than a machine can have", (c.Memory+c.Pluggable)>>30)
	case c.CPUs < 1 || c.CPUs > maxCPUs:
		return nil, fmt.Errorf("%d processors are too few or too many: a machine has up to %d", c.CPUs, maxCPUs)
	}
	cpuid, err := cpuidFor(sys, c)
	if err != nil {
		return nil, err
	}
	ram, err := memory.New(c.Memory, memory.Options{HugePages: c.HugePages, Pluggable: c.Pluggable})
	if err != nil {
		return nil, err
	}
	m, err := assemble(sys, c, ram, cpuid)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			m.Close()
		}
	}()
	for _, d := range c.Devices {
		if err := m.Add(d); err != nil {
			return nil, err
		}
	}
	return m, m.boot(c)
}

// assemble makes all of a machine but its devices, around memory that it takes
// over.
func assemble(sys *kvm.System, c Config, ram *memory.Memory, cpuid [][]kvm.CPUIDEntry) (_ *Machine, err error) {
	m := &Machine{memory: ram, ejected: c.Ejected, thread: c.Thread, ended: make(chan struct{})}
	m.gate.init()
	defer func() {
		if err != nil {
			m.Close()
		}
	}()
	if m.msrs, err = sys.MSRs(); err != nil {
		return nil, err
	}
	if m.vm, err = sys.CreateVM(); err != nil {
		return nil, err
	}
	m.interrupts.vm = m.vm
	if c.DirtyRing {
		if err := sys.CheckRings(); err != nil {
			return nil, fmt.Errorf("dirty rings: %w", err)
		}
		if err := m.vm.UseRings(); err != nil {
			return nil, err
		}
		m.rings = &rings{machine: m}
	}
	for i, r := range m.memory.Regions() {
		if err := m.vm.SetMemory(uint32(i), 0, r.Guest, r.Host); err != nil {
			return nil, err
		}
	}
	if err := m.lend(c.Mapped); err != nil {
		return nil, err
	}
	if err := m.vm.CreateIRQChip(); err != nil {
		return nil, err
	}
	if err := m.addPlatform(c); err != nil {
		return nil, err
	}
	return m, m.addCPUs(cpuid)
}

// lend maps what isn't the machine's own memory.
func (m *Machine) lend(list []Mapped) error {
	regions := m.memory.Regions()
	last := &regions[len(regions)-1]
	next := max(last.End(), memory.HoleEnd)
	for i, l := range list {
		size := uint64(len(l.Host))
		if l.Addr < next || size > highWindow || l.Addr+size > highWindow {
			return fmt.Errorf("%d bytes can't be mapped at %#x", size, l.Addr)
		}
		if err := m.vm.SetMemory(uint32(len(regions)+i), kvm.MemReadOnly, l.Addr, l.Host); err != nil {
			return err
		}
		m.memory.Lend(l.Addr, l.Host)
		next = l.Addr + size
	}
	return nil
}

// boot puts kernel and tables into memory and the first processor at their
// start.
func (m *Machine) boot(c Config) error {
	entry, err := boot.Load(m.memory, c.Linux)
	if err != nil {
		return err
	}
	tables, err := acpi.Build(acpi.Machine{
		CPUs: c.CPUs, IOAPIC: ioapicAddr, LAPIC: lapicAddr, ECAM: ecamAddr,
		Low: acpi.Window{From: lowWindow, To: ecamAddr - 1}, High: acpi.Window{From: highWindow, To: highWindowTo},
		Serial:   []acpi.Serial{{Port: serialPort, GSI: serialGSI}},
		Ports:    acpi.Ports{Sleep: portSleep, Reset: portReset, Event: portEvent, Slots: portSlots},
		EventGSI: eventGSI, Generation: generationAddr,
	}, boot.ACPIAddr)
	if err != nil {
		return err
	}
	if len(tables) > boot.ACPISize-len(resetCode) {
		return fmt.Errorf("%d bytes of ACPI tables are too many", len(tables))
	}
	if err := errors.Join(m.memory.Write(tables, boot.ACPIAddr), m.memory.Write(resetCode, resetVector)); err != nil {
		return err
	}
	if err := m.newGeneration(); err != nil {
		return err
	}
	return enter(m.cpus[0].cpu, entry)
}

// newGeneration gives the guest a number that no guest had before.
func (m *Machine) newGeneration() error {
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return err
	}
	return m.memory.Write(id, generationAddr)
}

// resetVector is where a processor begins that is reset, in real mode. Linux
// jumps there to reboot a machine whose ACPI is hardware-reduced and which has
// no EFI (arch/x86/kernel/reboot.c: reboot_init, BOOT_EFI, then BOOT_BIOS).
const resetVector = 0xffff0

// resetCode asks for a reset by the port of ACPI.
var resetCode = []byte{
	0xb0, acpi.ResetValue, // mov al, value
	0xba, portReset & 0xff, portReset >> 8, // mov dx, port
	0xee,       // out dx, al
	0xf4,       // hlt
	0xeb, 0xfd, // jmp to the hlt
	0, 0, 0, 0, 0, 0, 0, // up to the end of the first MiB
}

// addPlatform adds what every machine has.
func (m *Machine) addPlatform(c Config) error {
	m.serial = serial.New(c.Console, func(level bool) { _ = m.vm.IRQLine(serialGSI, level) })
	m.power = &powerPorts{machine: m}
	m.slots = &slotPorts{machine: m}
	m.pci = pci.NewBus(&m.mmio)
	for _, d := range []struct {
		on       *bus.Bus
		at, size uint64
		device   bus.Device
	}{
		{&m.ports, serialPort, serial.Ports, serialPorts{m.serial}},
		{&m.ports, portSleep, 2, sleepPorts{m}},
		{&m.ports, portReset, 1, resetPort{m}},
		{&m.ports, portEvent, 1, m.power},
		{&m.ports, portSlots, 12, m.slots},
		{&m.ports, portExit, 4, exitPort{m}},
		{&m.ports, pci.PortBase, pci.PortCount, m.pci.Ports()},
		{&m.mmio, ecamAddr, acpi.ECAMSize, m.pci},
	} {
		if err := d.on.Add(d.at, d.size, d.device); err != nil {
			return err
		}
	}
	return nil
}

// Console is where to write what the guest shall receive on its serial port.
func (m *Machine) Console() io.Writer { return m.serial }

// CPUs is how many processors it has.
func (m *Machine) CPUs() int { return len(m.cpus) }

// Memory is how many bytes of memory it has.
func (m *Machine) Memory() uint64 { return m.memory.Size() }

// Run lets the guest run until it ends, or ctx does.
func (m *Machine) Run(ctx context.Context) (End, error) {
	stop := context.AfterFunc(ctx, m.Stop)
	defer stop()
	var wg sync.WaitGroup
	m.mu.Lock()
	m.started = true
	m.mu.Unlock()
	for range m.cpus {
		m.gate.join()
	}
	for _, c := range m.cpus {
		wg.Go(c.run)
	}
	wg.Wait()
	if c := m.end.faulty; c != nil {
		m.end.Where = c.fault()
	}
	return m.end, m.err
}

// finish ends the machine, for the first reason that there is.
func (m *Machine) finish(end End, err error) {
	m.once.Do(func() {
		m.end, m.err = end, err
		m.done.Store(true)
		close(m.ended)
		m.gate.breakDown()
		for _, c := range m.cpus {
			c.kick()
		}
		// A processor that waits for memory now ends before it sees that there
		// is none.
		m.memory.Abandon()
	})
}

// Stop ends the machine as a plug that is pulled.
func (m *Machine) Stop() { m.finish(End{Reason: Stopped}, nil) }

// Reset ends the machine as its guest does that wants to start anew.
func (m *Machine) Reset() { m.finish(End{Reason: Restart}, nil) }

// PowerButton asks the guest to shut down.
func (m *Machine) PowerButton() error { return m.power.press(acpi.EventPower) }

// Close releases what the machine has. It must not run any more.
func (m *Machine) Close() error {
	m.once.Do(func() { close(m.ended) }) // nobody may end what is none any more
	var errs []error
	for _, f := range m.functions {
		f.release()
	}
	m.functions = nil
	if m.serial != nil {
		errs = append(errs, m.serial.Close())
	}
	for _, c := range m.cpus {
		errs = append(errs, c.cpu.Close())
	}
	if m.vm != nil {
		errs = append(errs, m.vm.Close())
	}
	if m.memory != nil {
		m.memory.Abandon() // nobody may fill what is none any more
		errs = append(errs, m.memory.Close())
	}
	return errors.Join(errs...)
}
