package vmm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/cleave-project/cleave/vmm/acpi"
	"github.com/cleave-project/cleave/vmm/boot"
	"github.com/cleave-project/cleave/vmm/bus"
	"github.com/cleave-project/cleave/vmm/kvm"
	"github.com/cleave-project/cleave/vmm/memory"
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
	Linux  boot.Linux
	// Console is where the serial port sends to.
	Console io.Writer
}

// Reason is why a machine ended.
type Reason string

// Reasons.
const (
	PowerOff    Reason = "power-off"
	Reset       Reason = "reset"
	TripleFault Reason = "triple-fault"
	Stopped     Reason = "stopped" // by Stop, or the end of Run's context
	TestExit    Reason = "test-exit"
)

// End is how a machine ended.
type End struct {
	Reason Reason
	Code   int // with TestExit
}

// Machine is one guest. Run may be called once.
type Machine struct {
	memory *memory.Memory
	vm     *kvm.VM
	ports  bus.Bus
	mmio   bus.Bus
	cpus   []*vcpu
	serial *serial.UART
	power  *powerPorts

	once sync.Once
	end  End
	err  error
	done atomic.Bool
	gate gate
}

// New puts a machine together and its kernel into its memory.
func New(sys *kvm.System, c Config) (_ *Machine, err error) {
	if c.Memory > maxMemory {
		return nil, fmt.Errorf("%d GiB of memory are more than a machine can have", c.Memory>>30)
	}
	m := &Machine{}
	m.gate.init()
	defer func() {
		if err != nil {
			m.Close()
		}
	}()
	if m.memory, err = memory.New(c.Memory, memory.Options{}); err != nil {
		return nil, err
	}
	if m.vm, err = sys.CreateVM(); err != nil {
		return nil, err
	}
	for i, r := range m.memory.Regions() {
		if err := m.vm.SetMemory(uint32(i), 0, r.Guest, r.Host); err != nil {
			return nil, err
		}
	}
	if err := m.vm.CreateIRQChip(); err != nil {
		return nil, err
	}
	if err := m.addPlatform(c); err != nil {
		return nil, err
	}
	entry, err := boot.Load(m.memory, c.Linux)
	if err != nil {
		return nil, err
	}
	tables, err := acpi.Build(acpi.Machine{
		CPUs: c.CPUs, IOAPIC: ioapicAddr, LAPIC: lapicAddr, ECAM: ecamAddr,
		Low: acpi.Window{From: lowWindow, To: ecamAddr - 1}, High: acpi.Window{From: highWindow, To: highWindowTo},
		Serial:   []acpi.Serial{{Port: serialPort, GSI: serialGSI}},
		Ports:    acpi.Ports{Sleep: portSleep, Reset: portReset, Event: portEvent, Slots: portSlots},
		EventGSI: eventGSI,
	}, boot.ACPIAddr)
	if err != nil {
		return nil, err
	}
	if err := m.memory.Write(tables, boot.ACPIAddr); err != nil {
		return nil, err
	}
	return m, m.addCPUs(sys, c.CPUs, entry)
}

// addPlatform adds what every machine has.
func (m *Machine) addPlatform(c Config) error {
	m.serial = serial.New(c.Console, func(level bool) { _ = m.vm.IRQLine(serialGSI, level) })
	m.power = &powerPorts{machine: m}
	for _, d := range []struct {
		at, size uint64
		device   bus.Device
	}{
		{serialPort, serial.Ports, serialPorts{m.serial}},
		{portSleep, 2, sleepPorts{m}},
		{portReset, 1, resetPort{m}},
		{portEvent, 1, m.power},
		{portExit, 4, exitPort{m}},
	} {
		if err := m.ports.Add(d.at, d.size, d.device); err != nil {
			return err
		}
	}
	return nil
}

// Console is where to write what the guest shall receive on its serial port.
func (m *Machine) Console() io.Writer { return m.serial }

// Run lets the guest run until it ends, or ctx does.
func (m *Machine) Run(ctx context.Context) (End, error) {
	stop := context.AfterFunc(ctx, m.Stop)
	defer stop()
	var wg sync.WaitGroup
	for range m.cpus {
		m.gate.join()
	}
	for _, c := range m.cpus {
		wg.Go(c.run)
	}
	wg.Wait()
	return m.end, m.err
}

// finish ends the machine, for the first reason that there is.
func (m *Machine) finish(end End, err error) {
	m.once.Do(func() {
		m.end, m.err = end, err
		m.done.Store(true)
		m.gate.open()
		for _, c := range m.cpus {
			c.kick()
		}
	})
}

// Stop ends the machine as a plug that is pulled.
func (m *Machine) Stop() { m.finish(End{Reason: Stopped}, nil) }

// Pause returns when no vCPU is in the guest any more, nor gets there until
// Resume.
func (m *Machine) Pause() {
	m.gate.shut()
	for _, c := range m.cpus {
		c.kick()
	}
	m.gate.wait()
}

// Resume lets the vCPUs go on.
func (m *Machine) Resume() { m.gate.open() }

// PowerButton asks the guest to shut down.
func (m *Machine) PowerButton() error { return m.power.press(acpi.EventPower) }

// Close releases what the machine has. It must not run any more.
func (m *Machine) Close() error {
	var errs []error
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
		errs = append(errs, m.memory.Close())
	}
	return errors.Join(errs...)
}
