package console

import (
	"encoding/json"
	"fmt"

	"github.com/cleave-project/cleave/vmm/virtio"
)

// state is what is saved.
type state struct {
	Version int
	Ports   []portState
}

type portState struct {
	Known, Opened, ToAdd, ToName bool
	// Sent is how much of the oldest request of the guest was written.
	Sent int
}

// Save implements virtio.Device.
func (d *Device) Save() ([]byte, error) {
	s := state{Version: 1}
	for _, p := range d.ports {
		p.mu.Lock()
		s.Ports = append(s.Ports, portState{Known: p.known, Opened: p.opened, ToAdd: p.toAdd, ToName: p.toName, Sent: p.sent})
		p.mu.Unlock()
	}
	return json.Marshal(s)
}

// Restore implements virtio.Device.
func (d *Device) Restore(b []byte) error {
	var s state
	if err := virtio.Unmarshal(b, "a console", 1, &s); err != nil {
		return err
	}
	if len(s.Ports) != len(d.ports) {
		return fmt.Errorf("state of a console: %d ports of %d", len(s.Ports), len(d.ports))
	}
	for i, p := range d.ports {
		from := s.Ports[i]
		if from.Sent < 0 {
			return fmt.Errorf("state of a console: %d bytes were sent", from.Sent)
		}
		p.mu.Lock()
		p.known, p.opened, p.toAdd, p.toName, p.sent = from.Known, from.Opened, from.ToAdd, from.ToName, from.Sent
		p.toOpen = p.known
		p.mu.Unlock()
	}
	d.wake()
	return nil
}
