package monitor

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/vmm"
	"github.com/cleave-project/cleave/vmm/control"
	"github.com/cleave-project/cleave/vmm/qcow2"
	"github.com/cleave-project/cleave/vmm/ratelimit"
	"github.com/cleave-project/cleave/vmm/virtio/blk"
	vnet "github.com/cleave-project/cleave/vmm/virtio/net"
)

// device is one of the machine's, with what the process has for it.
type device struct {
	vmm.Device
	limits  []*ratelimit.Limiter // none for one without
	metrics func() any           // nil for one without
	resize  func(uint64) error   // nil for what is no disk
	close   func()
	flush   func() error // nil for what is no disk
	renew   func()       // for a disk that another host has written to, or nil
	stays   string       // why the guest can't go elsewhere with it
	disk    blk.Disk     // what it writes to, nil for what is no disk or can't be written
}

// newDisk takes a file over.
func newDisk(d control.Disk, f *os.File) (*device, error) {
	disk, done, err := openDisk(d, f)
	if err != nil {
		return nil, fmt.Errorf("disk %q: %w", d.Name, err)
	}
	l := ratelimit.New(limitsOf(d.Limits))
	b, err := blk.New(disk, blk.Options{Serial: d.Serial, ReadOnly: d.ReadOnly, Queues: d.Queues, Limits: l})
	if err != nil {
		done()
		return nil, fmt.Errorf("disk %q: %w", d.Name, err)
	}
	stays := ""
	if d.Format == control.FormatQCOW2 && !d.ReadOnly {
		stays = "what a qcow2 image's tables are is known to this process alone"
	}
	writable := disk
	if d.ReadOnly {
		writable = nil
	}
	return &device{
		Device: vmm.Device{Name: d.Name, Device: b}, stays: stays, disk: writable, flush: disk.Flush, renew: func() { forget(f) }, limits: []*ratelimit.Limiter{l},
		metrics: func() any { return diskMetrics(b.Metrics()) }, close: done,
		resize: func(size uint64) error {
			if d.Format == control.FormatQCOW2 {
				return errors.New("a disk in a qcow2 image can't be made larger while it is in use")
			}
			return grow(f, b, size)
		},
	}, nil
}

// openDisk takes a file over as what it is said to be, which nobody finds out
// from what is in it: a guest may have written that.
func openDisk(d control.Disk, f *os.File) (disk blk.Disk, done func(), err error) {
	file, err := blk.NewFile(f)
	switch {
	case err != nil:
	case d.Format == "", d.Format == control.FormatRaw:
		return file, func() { f.Close() }, nil
	case d.Format == control.FormatQCOW2:
		var image *qcow2.Image
		if image, err = qcow2.Open(file, d.ReadOnly); err == nil {
			return image, func() { image.Close(); f.Close() }, nil
		}
	default:
		err = fmt.Errorf("there is no format %q", d.Format)
	}
	f.Close()
	return nil, nil, err
}

// newNet takes the queues of a tap over.
func newNet(n control.Net, files []*os.File) (_ *device, err error) {
	var taps []*vnet.Tap
	closeTaps := func() {
		for _, t := range taps {
			t.Close()
		}
	}
	defer func() {
		for _, f := range files {
			f.Close() // the taps have duplicates
		}
		if err != nil {
			closeTaps()
			err = fmt.Errorf("port %q: %w", n.Name, err)
		}
	}()
	mac, err := addressOf(n.MAC)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		t, err := vnet.NewTap(fd)
		if err != nil {
			return nil, err
		}
		taps = append(taps, t)
	}
	receive, send := ratelimit.New(limitsOf(n.Limits)), ratelimit.New(limitsOf(n.Limits))
	d, err := vnet.New(taps, vnet.Options{MAC: mac, Receive: receive, Send: send})
	if err != nil {
		return nil, err
	}
	return &device{
		Device: vmm.Device{Name: n.Name, Device: d}, limits: []*ratelimit.Limiter{receive, send},
		metrics: func() any { return d.Metrics() }, close: closeTaps,
	}, nil
}

// addressOf parses an address, or makes one that nobody is likely to have: a
// local one (IEEE 802, 8.4).
func addressOf(text string) (mac vnet.MAC, err error) {
	if text == "" {
		_, err = rand.Read(mac[:])
		mac[0] = mac[0]&^3 | 2
		return mac, err
	}
	b, err := net.ParseMAC(text)
	if err != nil {
		return mac, err
	}
	if len(b) != len(mac) || b[0]&1 != 0 {
		return mac, fmt.Errorf("%s is no address of a station", text)
	}
	return vnet.MAC(b), nil
}

// grow makes a disk in a file larger.
func grow(f *os.File, d *blk.Device, size uint64) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() || size > math.MaxInt64 || int64(size) < st.Size() {
		return errors.New("only a disk in a file can be made larger, and none smaller")
	}
	if err := f.Truncate(int64(size)); err != nil {
		return err
	}
	return d.Resized()
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
