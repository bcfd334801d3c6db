package monitor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/cleave-project/cleave/vmm"
	"github.com/cleave-project/cleave/vmm/control"
)

var _ control.Machine = (*Monitor)(nil)

// with calls f with the machine, if there is one, which stays until f returns.
func (m *Monitor) with(f func(*vmm.Machine) error) error {
	m.life.RLock()
	defer m.life.RUnlock()
	if m.machine == nil {
		return m.absent()
	}
	return f(m.machine)
}

// Status implements control.Machine.
func (m *Monitor) Status(context.Context) (s control.Status, err error) {
	return s, m.with(func(machine *vmm.Machine) error {
		s = control.Status{State: "running", CPUs: machine.CPUs(), Memory: machine.Memory(), Resets: m.resets}
		if machine.Paused() {
			s.State = "paused"
		}
		if m.pluggable != nil {
			s.Pluggable = m.more()
			_, s.Plugged = m.pluggable.Size()
		}
		for _, d := range machine.Devices() {
			s.Devices = append(s.Devices, d.Name)
		}
		return nil
	})
}

// Metrics implements control.Machine.
func (m *Monitor) Metrics(context.Context) (out control.Metrics, err error) {
	out.Devices, err = m.measured()
	return out, err
}

// Pause implements control.Machine.
func (m *Monitor) Pause(context.Context) error { return m.with((*vmm.Machine).Pause) }

// Resume implements control.Machine.
func (m *Monitor) Resume(context.Context) error { return m.with((*vmm.Machine).Resume) }

// PowerButton implements control.Machine.
func (m *Monitor) PowerButton(context.Context) error { return m.with((*vmm.Machine).PowerButton) }

// Reset implements control.Machine.
func (m *Monitor) Reset(context.Context) error {
	if m.config.Kernel == nil {
		return errors.New("reset: the guest was restored without its kernel, so it can't be started anew")
	}
	return m.with(func(machine *vmm.Machine) error { machine.Reset(); return nil })
}

// Stop implements control.Machine.
func (m *Monitor) Stop(context.Context) error {
	return m.with(func(machine *vmm.Machine) error { machine.Stop(); return nil })
}

// AddDisk implements control.Machine.
func (m *Monitor) AddDisk(_ context.Context, d control.Disk, f, changes *os.File) error {
	dev, err := newDisk(Disk{Disk: d, File: f, Changes: changes}, "", m.config.Notice)
	if err != nil {
		return err
	}
	return m.add(dev)
}

// AddNet implements control.Machine.
func (m *Monitor) AddNet(_ context.Context, n control.Net, files []*os.File) error {
	dev, err := newNet(n, files)
	if err != nil {
		return err
	}
	return m.add(dev)
}

// removeTimeout is how long a guest has to let go of a device.
const removeTimeout = 30 * time.Second

// Remove implements control.Machine.
func (m *Monitor) Remove(ctx context.Context, r control.Remove) error {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(max(r.Timeout, 0), removeTimeout))
	defer cancel()
	return m.with(func(machine *vmm.Machine) error { return machine.Remove(ctx, r.Name) })
}

// SetLimits implements control.Machine.
func (m *Monitor) SetLimits(_ context.Context, l control.SetLimits) error {
	d := m.find(l.Name)
	if d == nil || d.limits == nil {
		return fmt.Errorf("set limits of device %q: there is none of this name that has limits", l.Name)
	}
	for _, r := range d.limits {
		r.Set(limitsOf(l.Limits))
	}
	return nil
}

// ResizeDisk implements control.Machine.
func (m *Monitor) ResizeDisk(_ context.Context, r control.ResizeDisk) error {
	d := m.find(r.Name)
	if d == nil || d.resize == nil {
		return fmt.Errorf("resize disk %q: there is none of this name", r.Name)
	}
	m.mu.Lock()
	leaving := m.moves.now.State == control.Leaving
	m.mu.Unlock()
	if leaving {
		return fmt.Errorf("resize disk %q: the guest is on its way to another host", r.Name)
	}
	return d.resize(r.Bytes)
}

// Save implements control.Machine.
func (m *Monitor) Save(_ context.Context, o control.Save, state, memory *os.File) error {
	defer state.Close()
	defer memory.Close()
	return m.with(func(machine *vmm.Machine) error {
		return machine.Save(vmm.Files{State: state, Memory: memory}, vmm.SaveOptions{Changes: o.Changes, Track: o.Track})
	})
}
