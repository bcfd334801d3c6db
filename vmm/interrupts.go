package vmm

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/vmm/kvm"
)

// Interrupt numbers: the pins of the PICs and the I/O APIC, as the kernel has
// them from the start, then those of messages.
const (
	picPins      = 16
	ioapicPins   = 24
	firstMessage = ioapicPins
	maxMessages  = 2048
)

// interrupts is the kernel's table of where interrupts lead.
type interrupts struct {
	vm *kvm.VM

	mu       sync.Mutex
	messages []message // by number, from firstMessage on
}

// message is an interrupt number of a vector.
type message struct {
	used, routed bool
	addr         uint64
	data         uint32
}

// take finds n numbers that nobody has.
func (in *interrupts) take(n int) ([]uint32, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	var out []uint32
	for i := 0; len(out) < n; i++ {
		if i == maxMessages {
			for _, g := range out {
				in.messages[g-firstMessage] = message{}
			}
			return nil, fmt.Errorf("%d interrupts are too many", n)
		}
		if i == len(in.messages) {
			in.messages = append(in.messages, message{})
		}
		if !in.messages[i].used {
			in.messages[i].used = true
			out = append(out, uint32(firstMessage+i))
		}
	}
	return out, nil
}

// give gives numbers back.
func (in *interrupts) give(gsis []uint32) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, g := range gsis {
		in.messages[g-firstMessage] = message{}
	}
	_ = in.write() // with less than there was
}

// route leads a number to a message. A guest whose message KVM doesn't take
// gets none.
func (in *interrupts) route(gsi uint32, addr uint64, data uint32) {
	in.mu.Lock()
	defer in.mu.Unlock()
	m := &in.messages[gsi-firstMessage]
	if m.routed && m.addr == addr && m.data == data {
		return // the kernel waits for all vCPUs to see a change
	}
	m.routed, m.addr, m.data = true, addr, data
	if in.write() != nil {
		m.routed = false
		_ = in.write()
	}
}

// write replaces the kernel's table.
func (in *interrupts) write() error {
	var routes []kvm.Route
	for pin := range uint32(ioapicPins) {
		if pin < picPins {
			routes = append(routes, kvm.Route{GSI: pin, Chip: pin / 8, Pin: pin % 8})
		}
		routes = append(routes, kvm.Route{GSI: pin, Chip: 2, Pin: pin})
	}
	for i, m := range in.messages {
		if m.routed {
			routes = append(routes, kvm.Route{GSI: uint32(firstMessage + i), MSI: true, Addr: m.addr, Data: m.data})
		}
	}
	return in.vm.SetRoutes(routes)
}

// vectors are a function's interrupts: each an eventfd, which the kernel turns
// into a message. They are its pci.Messages.
type vectors struct {
	table  *interrupts
	gsis   []uint32
	events []event
}

func newVectors(in *interrupts, n int) (*vectors, error) {
	v := &vectors{table: in}
	var err error
	if v.gsis, err = in.take(n); err != nil {
		return nil, err
	}
	for _, gsi := range v.gsis {
		e, err := newEvent()
		if err != nil {
			v.close()
			return nil, err
		}
		v.events = append(v.events, e)
		if err := in.vm.IRQFD(e.fd, gsi, true); err != nil {
			v.close()
			return nil, err
		}
	}
	return v, nil
}

// Route implements pci.Messages. While a vector is masked nobody signals it.
func (v *vectors) Route(n int, addr uint64, data uint32, ok bool) {
	if ok {
		v.table.route(v.gsis[n], addr, data)
	}
}

// Signal implements pci.Messages.
func (v *vectors) Signal(n int) { _, _ = v.events[n].Write(one) }

func (v *vectors) close() {
	for i, e := range v.events {
		_ = v.table.vm.IRQFD(e.fd, v.gsis[i], false)
		e.Close()
	}
	v.table.give(v.gsis)
	v.events = nil
}

// one is what is added to an eventfd.
var one = []byte{1, 0, 0, 0, 0, 0, 0, 0}

// event is an eventfd that Go's poller waits for, and its descriptor:
// os.File.Fd would take it from the poller.
type event struct {
	*os.File
	fd int
}

func newEvent() (event, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return event{}, fmt.Errorf("make an eventfd: %w", err)
	}
	return event{os.NewFile(uintptr(fd), "eventfd"), fd}, nil
}
