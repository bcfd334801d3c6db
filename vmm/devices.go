package vmm

import (
	"context"
	"fmt"
	"os"
	"slices"

	"github.com/cleave-project/cleave/vmm/acpi"
	"github.com/cleave-project/cleave/vmm/kvm"
	"github.com/cleave-project/cleave/vmm/pci"
	"github.com/cleave-project/cleave/vmm/virtio"
)

// Device is a virtio device under a name, which is its own in the machine.
type Device struct {
	Name string
	virtio.Device
}

// function is a device in its slot.
type function struct {
	Device
	*virtio.Transport
	machine *Machine
	slot    int
	events  []event // of the queues
	vectors *vectors
	at      uint64        // where its BAR is; 0 if nowhere
	gone    chan struct{} // closed when it has left the machine
}

// The Transport is what is on the bus, and not the Device beside it.
var _ interface {
	pci.Device
	pci.Mapped
} = (*function)(nil)

// barStep is how far apart devices' memory is placed at the start.
const barStep = 1 << 20

// newFunction puts a device behind a transport, for a slot.
func (m *Machine) newFunction(d Device, slot int) (_ *function, err error) {
	f := &function{Device: d, machine: m, slot: slot, gone: make(chan struct{})}
	defer func() {
		if err != nil {
			f.release()
		}
	}()
	queues := len(d.Queues())
	var kicks []*os.File
	for range queues {
		e, err := newEvent()
		if err != nil {
			return nil, err
		}
		f.events = append(f.events, e)
		kicks = append(kicks, e.File)
	}
	if f.vectors, err = newVectors(&m.interrupts, queues+1); err != nil {
		return nil, err
	}
	at := uint64(lowWindow + slot*barStep)
	f.Transport, err = virtio.NewTransport(d.Device, m.memory, at, class(d.Type()), kicks, f.vectors)
	return f, err
}

// class is what a device is for those who don't know virtio (PCI Code and ID
// Assignment, 1).
func class(kind uint16) uint32 {
	switch kind {
	case virtio.TypeNet:
		return 0x020000
	case virtio.TypeBlock:
		return 0x018000
	case virtio.TypeConsole:
		return 0x078000
	}
	return 0xff0000
}

// Mapped implements pci.Mapped: the kernel counts writes to where the queues
// are notified.
func (f *function) Mapped(_ int, at uint64) {
	for i, e := range f.events {
		if f.at != 0 {
			_ = f.machine.vm.IOEventFD(kvm.IOEvent{Addr: f.at + virtio.Notify(i), EventFD: e.fd}, false)
		}
		if at != 0 {
			// Where it can't, writes leave the guest and count there.
			_ = f.machine.vm.IOEventFD(kvm.IOEvent{Addr: at + virtio.Notify(i), EventFD: e.fd}, true)
		}
	}
	f.at = at
}

// release gives back what a function that is on no bus has.
func (f *function) release() {
	if f.Transport != nil {
		f.Detach()
	}
	if f.vectors != nil {
		f.vectors.close()
	}
	for _, e := range f.events {
		e.Close()
	}
}

// Add plugs a device in. A guest that runs is told.
func (m *Machine) Add(d Device) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.moving.Load() {
		return fmt.Errorf("add device %q: %w", d.Name, errMoving)
	}
	slot := m.pci.Free()
	if slot < 0 {
		return fmt.Errorf("add device %q: all %d slots are taken", d.Name, pci.Slots)
	}
	if err := m.plug(d, slot, nil); err != nil {
		return err
	}
	if !m.started {
		return nil
	}
	m.slots.fill(slot)
	return m.power.press(acpi.EventSlots)
}

// plug puts a device, which may have a saved state, into a slot.
func (m *Machine) plug(d Device, slot int, state *virtio.TransportState) error {
	if d.Name == "" || m.find(d.Name) != nil {
		return fmt.Errorf("add device %q: there is one of this name already, or it has none", d.Name)
	}
	f, err := m.newFunction(d, slot)
	if err == nil && state != nil {
		if err = f.Restore(state); err != nil {
			f.release()
		}
	}
	if err != nil {
		return fmt.Errorf("add device %q: %w", d.Name, err)
	}
	if err := m.pci.Add(slot, f); err != nil {
		f.release()
		return fmt.Errorf("add device %q: %w", d.Name, err)
	}
	m.functions = append(m.functions, f)
	return nil
}

func (m *Machine) find(name string) *function {
	i := slices.IndexFunc(m.functions, func(f *function) bool { return f.Name == name })
	if i < 0 {
		return nil
	}
	return m.functions[i]
}

// Remove asks the guest to let go of a device and waits until it has: the
// device is idle then. A guest that doesn't, keeps it.
func (m *Machine) Remove(ctx context.Context, name string) error {
	m.mu.Lock()
	f := m.find(name)
	if f == nil {
		m.mu.Unlock()
		return fmt.Errorf("remove device %q: there is none of this name", name)
	}
	if !m.started {
		m.unplug(f)
		m.mu.Unlock()
		return nil
	}
	m.slots.empty(f.slot)
	m.mu.Unlock()
	if err := m.power.press(acpi.EventSlots); err != nil {
		return err
	}
	select {
	case <-f.gone:
		return nil
	case <-m.ended:
		return fmt.Errorf("remove device %q: the guest has ended", name)
	case <-ctx.Done():
		return fmt.Errorf("remove device %q: the guest has not let go of it: %w", name, ctx.Err())
	}
}

// eject is the guest's word that a slot may be emptied. What is released then
// is not the vCPU's thread to release, which may be allowed less.
func (m *Machine) eject(slot int) {
	done := make(chan struct{})
	go func() { defer close(done); m.empty(slot) }()
	<-done
}

func (m *Machine) empty(slot int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, f := range m.functions {
		if f.slot == slot {
			m.unplug(f)
			return
		}
	}
}

func (m *Machine) unplug(f *function) {
	m.pci.Remove(f.slot)
	f.release()
	m.functions = slices.DeleteFunc(m.functions, func(o *function) bool { return o == f })
	if m.ejected != nil {
		m.ejected(f.Device)
	}
	close(f.gone) // last: who waits for it may plug in another of that name
}

// Devices are those that are plugged in.
func (m *Machine) Devices() []Device {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []Device
	for _, f := range m.functions {
		out = append(out, f.Device)
	}
	return out
}
