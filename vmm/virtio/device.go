package virtio

import (
	"os"

	"github.com/cleave-project/cleave/vmm/memory"
)

// Types of devices (5).
const (
	TypeNet     = 1
	TypeBlock   = 2
	TypeConsole = 3
	TypeEntropy = 4
	TypeBalloon = 5
	TypeVsock   = 19
	TypeMem     = 24
	TypePmem    = 27
)

// Device is what is behind a transport. It is idle until Activate; then it
// works on its queues, in goroutines of its own, until Pause. From there it
// goes on with another Activate, or Reset makes it idle again. The transport
// calls these, Save and Restore one after the other.
type Device interface {
	Type() uint16
	Features() uint64
	// Queues are their sizes. Neither they nor the features change.
	Queues() []uint16
	// ReadConfig and WriteConfig are accesses to the device's own registers,
	// of 1 to 8 bytes at any offset. They come from the vCPUs' threads, also
	// while the device is idle.
	ReadConfig(offset uint64, data []byte)
	WriteConfig(offset uint64, data []byte)
	// Activate begins work, or goes on after Pause or Restore. Requests may be
	// in the queues already, of which no kick tells. After an error nothing
	// is at work.
	Activate(Activation) error
	// Pause ends the work. When it returns every request that was taken has
	// been given back or put back (Queue.PutBack), and no goroutine of the
	// device touches the guest's memory or calls a function of its Activation.
	Pause()
	// Reset forgets what the driver has set. The device is paused, or idle.
	Reset()
	// Save returns what of the device itself is to outlive its process: JSON
	// of a small struct with a Version, nil for nothing. The device is paused,
	// or idle.
	Save() ([]byte, error)
	// Restore puts a new, idle device into a saved state, which may have been
	// tampered with. Activate follows if a driver was at work.
	Restore([]byte) error
}

// Activation is what a device works with once the driver is ready. Its
// functions may be called from any goroutine until Pause returns, and don't
// block.
type Activation struct {
	Memory   *memory.Memory
	Features uint64   // that both sides have
	Queues   []*Queue // nil for those that the driver doesn't use
	// Kicks count the driver's notifications, one eventfd for each queue,
	// non-blocking and known to Go's poller.
	Kicks []*os.File
	// Interrupt tells the driver that a queue has something for it.
	Interrupt func(queue int)
	// ConfigChanged tells the driver to read the device's own registers again.
	ConfigChanged func()
	// Fail says that the guest broke the rules: the device is stopped until
	// the driver resets it.
	Fail func(error)
}

// ReadRegisters is Device.ReadConfig of a device whose registers are these.
func ReadRegisters(registers []byte, offset uint64, data []byte) {
	clear(data)
	if offset < uint64(len(registers)) {
		copy(data, registers[offset:])
	}
}
