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
	tracked *tracked     // what is changed of that
}

// newDisk takes a disk's files over. lost is why marks of before aren't known,
// or empty; what can't be kept of the disk's changes at its end is told to
// notice.
func newDisk(d Disk, lost string, notice func(error)) (*device, error) {
	dev, err := newOpenDisk(d, lost, notice)
	if err != nil {
		d.closeFiles()
		return nil, fmt.Errorf("disk %q: %w", d.Name, err)
	}
	return dev, nil
}

func (d *Disk) closeFiles() {
	d.File.Close()
	if d.Changes != nil {
		d.Changes.Close()
	}
}

// newOpenDisk is newDisk, but that the files are the device's only without an
// error.
func newOpenDisk(d Disk, lost string, notice func(error)) (_ *device, err error) {
	if d.ReadOnly && d.Changes != nil {
		return nil, errors.New("nothing changes on a disk that is only read")
	}
	disk, done, err := openDisk(d.Disk, d.File)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = done()
		}
	}()
	l := ratelimit.New(limitsOf(d.Limits))
	b, err := blk.New(disk, blk.Options{Serial: d.Serial, ReadOnly: d.ReadOnly, Queues: d.Queues, Limits: l})
	if err != nil {
		return nil, err
	}
	dev := &device{
		Device: vmm.Device{Name: d.Name, Device: b}, limits: []*ratelimit.Limiter{l},
		flush: disk.Flush, renew: func() { forget(d.File) }, close: func() { _ = done(); d.closeFiles() },
	}
	dev.metrics = func() any { return diskMetrics(b.Metrics(), dev.tracked) }
	if d.ReadOnly {
		dev.resize = func(uint64) error { return errors.New("the guest can't write to it") }
		return dev, nil
	}
	t, err := track(b, disk, d, lost)
	if err != nil {
		return nil, err
	}
	dev.disk, dev.tracked = disk, t
	dev.close = func() {
		err := done()
		if err == nil {
			err = t.end()
		}
		if err != nil {
			notice(fmt.Errorf("disk %q: %w", d.Name, err))
		}
		d.closeFiles()
	}
	dev.resize = func(size uint64) error { return t.grow(d.File, size) }
	if d.Format == control.FormatQCOW2 {
		dev.stays = "what a qcow2 image's tables are is known to this process alone"
		dev.resize = func(uint64) error {
			return errors.New("a disk in a qcow2 image can't be made larger while it is in use")
		}
	}
	return dev, nil
}

// openDisk opens a file as what it is said to be, which nobody finds out from
// what is in it: a guest may have written that. done ends that, and leaves the
// file open.
func openDisk(d control.Disk, f *os.File) (disk blk.Disk, done func() error, err error) {
	file, err := blk.NewFile(f)
	if err != nil {
		return nil, nil, err
	}
	switch d.Format {
	case "", control.FormatRaw:
		return file, func() error { return nil }, nil
	case control.FormatQCOW2:
		image, err := qcow2.Open(file, d.ReadOnly)
		if err != nil {
			return nil, nil, err
		}
		return image, image.Close, nil
	}
	return nil, nil, fmt.Errorf("there is no format %q", d.Format)
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
func diskMetrics(m blk.Metrics, t *tracked) any {
	text := ""
	if m.LastError != nil {
		text = m.LastError.Error()
	}
	marks := 0
	if t != nil {
		marks = t.Marks()
	}
	return struct {
		Read, Write, Flush, Erase blk.Count
		Marks                     int    // in what is changed
		LastError                 string `json:",omitempty"`
	}{m.Read, m.Write, m.Flush, m.Erase, marks, text}
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
