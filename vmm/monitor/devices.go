package monitor

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"

	"github.com/cleave-project/cleave/vmm"
	"github.com/cleave-project/cleave/vmm/control"
	"github.com/cleave-project/cleave/vmm/ratelimit"
	"github.com/cleave-project/cleave/vmm/virtio/blk"
)

// device is one of the machine's, with what the process has for it.
type device struct {
	vmm.Device
	limits  *ratelimit.Limiter // nil for one without
	metrics func() any         // nil for one without
	close   func()
}

// newDisk takes a file over.
func newDisk(d control.Disk, f *os.File) (*device, error) {
	disk, err := blk.NewFile(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("disk %q: %w", d.Name, err)
	}
	l := ratelimit.New(limitsOf(d.Limits))
	b, err := blk.New(disk, blk.Options{Serial: d.Serial, ReadOnly: d.ReadOnly, Queues: d.Queues, Limits: l})
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("disk %q: %w", d.Name, err)
	}
	return &device{
		Device: vmm.Device{Name: d.Name, Device: b}, limits: l,
		metrics: func() any { return diskMetrics(b.Metrics()) }, close: func() { f.Close() },
	}, nil
}

// diskMetrics has the error as text.
func diskMetrics(m blk.Metrics) any {
	text := ""
	if m.LastError != nil {
		text = m.LastError.Error()
	}
	return struct {
		Read, Write, Flush, Erase blk.Count
		LastError                 string `json:",omitempty"`
	}{m.Read, m.Write, m.Flush, m.Erase, text}
}

func limitsOf(l control.Limits) ratelimit.Limits {
	return ratelimit.Limits{
		Bytes: ratelimit.Rate{PerSecond: l.BytesPerSecond}, Operations: ratelimit.Rate{PerSecond: l.OperationsPerSecond},
	}
}

// keep notes a device, or closes it if there is one of its name.
func (m *Monitor) keep(d *device) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if d.Name == "" || slices.ContainsFunc(m.devices, func(o *device) bool { return o.Name == d.Name }) {
		d.close()
		return fmt.Errorf("device %q: there is one of this name already, or it has none", d.Name)
	}
	m.devices = append(m.devices, d)
	return nil
}

// find returns a device, nil if there is none of this name.
func (m *Monitor) find(name string) *device {
	m.mu.Lock()
	defer m.mu.Unlock()
	i := slices.IndexFunc(m.devices, func(d *device) bool { return d.Name == name })
	if i < 0 {
		return nil
	}
	return m.devices[i]
}

// ejected forgets a device that has left the machine.
func (m *Monitor) ejected(gone vmm.Device) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.devices = slices.DeleteFunc(m.devices, func(d *device) bool {
		if d.Name != gone.Name {
			return false
		}
		d.close()
		return true
	})
}

// add plugs a device into the machine.
func (m *Monitor) add(d *device) error {
	m.life.RLock()
	defer m.life.RUnlock()
	if m.machine == nil {
		d.close()
		return errEnded
	}
	if err := m.keep(d); err != nil {
		return err
	}
	err := m.machine.Add(d.Device)
	if err != nil {
		m.ejected(d.Device)
	}
	return err
}

// measured are the metrics of all devices that have some.
func (m *Monitor) measured() (map[string]json.RawMessage, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[string]json.RawMessage{}
	for _, d := range m.devices {
		if d.metrics == nil {
			continue
		}
		b, err := json.Marshal(d.metrics())
		if err != nil {
			return nil, fmt.Errorf("metrics of device %q: %w", d.Name, err)
		}
		out[d.Name] = b
	}
	return out, nil
}
