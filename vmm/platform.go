package vmm

import (
	"sync"

	"github.com/cleave-project/cleave/vmm/acpi"
	"github.com/cleave-project/cleave/vmm/serial"
)

// serialPorts is a UART on the bus of ports. Accesses of more than a byte
// are such to its registers in turn.
type serialPorts struct{ uart *serial.UART }

func (s serialPorts) Read(offset uint64, data []byte) {
	for i := range data {
		data[i] = s.uart.In(uint16(offset) + uint16(i))
	}
}

func (s serialPorts) Write(offset uint64, data []byte) {
	for i, b := range data {
		s.uart.Out(uint16(offset)+uint16(i), b)
	}
}

// sleepPorts are the sleep control and status registers (ACPI 6.5, 4.8.3.7).
type sleepPorts struct{ machine *Machine }

func (sleepPorts) Read(_ uint64, data []byte) { clear(data) }

func (s sleepPorts) Write(offset uint64, data []byte) {
	if offset == 0 && data[0] == acpi.SleepRequest {
		s.machine.finish(End{Reason: PowerOff}, nil)
	}
}

// resetPort is the reset register (4.8.3.6).
type resetPort struct{ machine *Machine }

func (resetPort) Read(_ uint64, data []byte) { clear(data) }

func (r resetPort) Write(_ uint64, data []byte) {
	if data[0] == acpi.ResetValue {
		r.machine.finish(End{Reason: Restart}, nil)
	}
}

// exitPort ends the guests of tests, with a code.
type exitPort struct{ machine *Machine }

func (exitPort) Read(_ uint64, data []byte) { clear(data) }

func (e exitPort) Write(_ uint64, data []byte) {
	code := 0
	for i, b := range data {
		code |= int(b) << (8 * i)
	}
	e.machine.finish(End{Reason: TestExit, Code: code}, nil)
}

// powerPorts is the event register of the generic event device: reading it
// takes the events back.
type powerPorts struct {
	machine *Machine
	mu      sync.Mutex
	events  byte
}

func (p *powerPorts) Read(_ uint64, data []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(data)
	data[0] = p.events
	p.events = 0
}

func (p *powerPorts) Write(uint64, []byte) {}

// press adds an event and tells the guest.
func (p *powerPorts) press(event byte) error {
	p.mu.Lock()
	p.events |= event
	p.mu.Unlock()
	for _, level := range []bool{true, false} { // an edge
		if err := p.machine.vm.IRQLine(eventGSI, level); err != nil {
			return err
		}
	}
	return nil
}

func (p *powerPorts) save() byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.events
}

func (p *powerPorts) restore(events byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events = events
}
