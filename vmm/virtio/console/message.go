package console

import (
	"encoding/binary"

	"github.com/cleave-project/cleave/vmm/virtio"
)

// Events of messages (5.3.6.2).
const (
	deviceReady = 0
	portAdd     = 1
	portReady   = 3
	portOpen    = 6
	portName    = 7
)

// messageSize is struct virtio_console_control: the port, the event, and its
// value.
const messageSize = 8

// take does what a driver's message says.
func (d *Device) take(c *virtio.Chain) (uint32, error) {
	var m [messageSize]byte
	if _, ok := virtio.Pull(c.Readable, m[:]); !ok {
		return 0, nil // nothing that could be understood
	}
	le := binary.LittleEndian
	id, event, value := le.Uint32(m[:]), le.Uint16(m[4:]), le.Uint16(m[6:])
	if event == deviceReady {
		for _, p := range d.ports {
			p.announce(value == 1)
		}
		return 0, nil
	}
	if uint64(id) >= uint64(len(d.ports)) {
		return 0, nil
	}
	switch p := d.ports[id]; event {
	case portReady:
		p.ready(value == 1)
	case portOpen:
		p.open(value == 1)
	}
	return 0, nil
}

// message is the source of messages to the driver.
func (d *Device) message(stopping <-chan struct{}, buffer [][]byte) (int, bool) {
	for {
		for id, p := range d.ports {
			if m := p.message(uint32(id), buffer != nil); m != nil {
				n := min(len(m), virtio.Length(buffer))
				virtio.Push(buffer, m)
				return n, true
			}
		}
		select {
		case <-d.news:
		case <-stopping:
			return 0, false
		}
	}
}

// wake has messages looked for.
func (d *Device) wake() {
	select {
	case d.news <- struct{}{}:
	default:
	}
}

// message is the next one of a port, which is not to be sent again if taken.
func (p *port) message(id uint32, taken bool) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	var event, value uint16
	var due *bool
	var name string
	switch {
	case p.toAdd:
		due, event, value = &p.toAdd, portAdd, 1
	case p.toName:
		due, event, value, name = &p.toName, portName, 1, p.name
	case p.toOpen:
		due, event = &p.toOpen, portOpen
		if p.conn != nil {
			value = 1
		}
	default:
		return nil
	}
	if taken {
		*due = false
	}
	m := make([]byte, 0, messageSize+len(name))
	m = binary.LittleEndian.AppendUint32(m, id)
	m = binary.LittleEndian.AppendUint16(m, event)
	m = binary.LittleEndian.AppendUint16(m, value)
	return append(m, name...)
}
