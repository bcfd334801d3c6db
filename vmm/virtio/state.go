package virtio

import (
	"encoding/json"
	"fmt"

	"github.com/cleave-project/cleave/vmm/pci"
)

// stateVersion is that of TransportState.
const stateVersion = 1

// TransportState is what is saved of a transport with its device.
type TransportState struct {
	Version      int
	Type         uint16
	Space        pci.State
	MSIX         pci.MSIXState
	Status       byte
	Failed       bool `json:",omitempty"`
	Features     uint64
	Select       [3]uint32 // of device features, driver features and queue
	ConfigVector uint16
	Generation   byte
	ISR          byte
	Queues       []QueueState
	Device       []byte `json:",omitempty"`
}

// QueueState is a queue as the driver has set it up, and how far it is.
type QueueState struct {
	Size, Vector         uint16
	Enabled              bool   `json:",omitempty"`
	Desc, Driver, Device uint64 `json:",omitempty"`
	// Position counts the requests that were taken, which are those that were
	// given back; Signaled those at the last interrupt.
	Position, Signaled uint16 `json:",omitempty"`
	Told               bool   `json:",omitempty"`
}

// Save returns the state of a transport that is paused.
func (t *Transport) Save() (*TransportState, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.life == running {
		return nil, fmt.Errorf("save virtio device of type %d: it is at work", t.device.Type())
	}
	own, err := t.device.Save()
	if err != nil {
		return nil, fmt.Errorf("save virtio device of type %d: %w", t.device.Type(), err)
	}
	s := &TransportState{
		Version: stateVersion, Type: t.device.Type(), Space: t.space.Save(), MSIX: t.msix.Save(),
		Status: t.status, Failed: t.failed.Load(), Features: t.features,
		Select:       [3]uint32{t.deviceSelect, t.driverSelect, uint32(t.queueSelect)},
		ConfigVector: uint16(t.configVector.Load()), Generation: byte(t.generation.Load()), ISR: byte(t.isr.Load()),
		Device: own,
	}
	for i, r := range t.queues {
		q := QueueState{Size: r.Size, Vector: r.Vector, Enabled: r.Enabled, Desc: r.Desc, Driver: r.Driver, Device: r.Device}
		if t.live != nil && t.live[i] != nil {
			l := t.live[i].Save()
			// Of a device that failed requests are lost, until its reset.
			if l.Next != l.Done && !s.Failed {
				return nil, fmt.Errorf("save virtio device of type %d: %d requests of queue %d are still with it", s.Type, l.Next-l.Done, i)
			}
			q.Position, q.Signaled, q.Told = l.Done, l.Signaled, l.Told
		}
		s.Queues = append(s.Queues, q)
	}
	return s, nil
}

// Restore puts a new transport, with a new device, into a state, which is
// checked against what the device is and what memory there is. Resume lets it
// go on. After an error it isn't to be used.
func (t *Transport) Restore(s *TransportState) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.restore(s); err != nil {
		return fmt.Errorf("restore virtio device of type %d: %w", t.device.Type(), err)
	}
	return nil
}

func (t *Transport) restore(s *TransportState) error {
	const known = statusAcknowledge | statusDriver | statusFeaturesOK | statusDriverOK | statusFailed
	switch {
	case t.life != idle:
		return fmt.Errorf("it is in use")
	case s.Version != stateVersion:
		return fmt.Errorf("its state has version %d, not %d", s.Version, stateVersion)
	case s.Type != t.device.Type():
		return fmt.Errorf("the state is of type %d", s.Type)
	case len(s.Queues) != len(t.queues):
		return fmt.Errorf("the state has %d queues instead of %d", len(s.Queues), len(t.queues))
	case s.Status&^known != 0:
		return fmt.Errorf("its status %#x can't be", s.Status)
	case s.Status&statusFeaturesOK != 0 && (s.Features&^t.offered() != 0 || s.Features&FeatureVersion1 == 0):
		return fmt.Errorf("the guest uses features %#x, of %#x that are there", s.Features, t.offered())
	case s.Status&statusDriverOK != 0 && s.Status&statusFeaturesOK == 0 && !s.Failed:
		return fmt.Errorf("its status %#x can't be", s.Status)
	}
	if err := t.space.Restore(s.Space); err != nil {
		return err
	}
	if err := t.msix.Restore(s.MSIX); err != nil {
		return err
	}
	t.status, t.features = s.Status, s.Features
	t.deviceSelect, t.driverSelect, t.queueSelect = s.Select[0], s.Select[1], uint16(s.Select[2])
	t.configVector.Store(uint32(t.vector(uint64(s.ConfigVector))))
	t.generation.Store(uint32(s.Generation))
	t.isr.Store(uint32(s.ISR))
	t.failed.Store(s.Failed)
	if err := t.restoreQueues(s); err != nil {
		return err
	}
	if s.Device != nil {
		if err := t.device.Restore(s.Device); err != nil {
			return err
		}
	}
	return nil
}

// restoreQueues sets up the registers and, where a driver is at work, the
// queues.
func (t *Transport) restoreQueues(s *TransportState) error {
	work := s.Status&statusDriverOK != 0 && !s.Failed
	if work {
		t.life, t.restored, t.live = paused, true, make([]*Queue, len(t.queues))
	}
	most := t.device.Queues()
	for i, q := range s.Queues {
		if q.Size == 0 || q.Size > most[i] || q.Size&(q.Size-1) != 0 {
			return fmt.Errorf("queue %d has size %d", i, q.Size)
		}
		t.queues[i] = queueRegisters{
			Size: q.Size, Vector: t.vector(uint64(q.Vector)), Enabled: q.Enabled, Desc: q.Desc, Driver: q.Driver, Device: q.Device,
		}
		if !work || !q.Enabled {
			continue
		}
		var err error
		t.live[i], err = RestoreQueue(t.memory, State{
			Config: t.config(i), Next: q.Position, Done: q.Position, Signaled: q.Signaled, Told: q.Told,
		})
		if err != nil {
			return fmt.Errorf("queue %d: %w", i, err)
		}
	}
	return nil
}

// Unmarshal reads into s what Device.Save has returned of a device, called
// what in errors, if it has that version.
func Unmarshal(b []byte, what string, version int, s any) error {
	var v struct{ Version int }
	if err := json.Unmarshal(b, &v); err != nil {
		return fmt.Errorf("state of %s: %w", what, err)
	}
	if v.Version != version {
		return fmt.Errorf("state of %s has version %d, not %d", what, v.Version, version)
	}
	if err := json.Unmarshal(b, s); err != nil {
		return fmt.Errorf("state of %s: %w", what, err)
	}
	return nil
}
