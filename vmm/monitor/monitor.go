// Package monitor makes a process of a machine: it holds one guest from its
// start, over resets that the guest asks for, to its end, and does what is
// asked over the control socket (package control). All that the guest is
// made of comes as open files, so that the process can be shut in before the
// guest's first instruction (package confine).
package monitor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/vmm"
	"github.com/cleave-project/cleave/vmm/boot"
	"github.com/cleave-project/cleave/vmm/control"
	"github.com/cleave-project/cleave/vmm/kvm"
	"github.com/cleave-project/cleave/vmm/virtio/balloon"
	"github.com/cleave-project/cleave/vmm/virtio/mem"
	"github.com/cleave-project/cleave/vmm/virtio/rng"
)

// Config is what a guest is made of. Its files are the monitor's from then
// on.
type Config struct {
	CPUs   int
	Memory uint64
	// MaxMemory is how much it may be given while it runs, if that is more.
	MaxMemory uint64
	// Pmem is what else is in its memory.
	Pmem []Pmem
	// HugePages has its memory in pages of 2 MiB.
	HugePages bool
	// DirtyRing is vmm.Config's.
	DirtyRing bool
	CPU       string // vmm.Config
	// Kernel and Initrd are what it boots; the latter may be nil. Without a
	// kernel it has to be restored, and ends at a reset.
	Kernel, Initrd *os.File
	Command        string
	Disks          []Disk
	Nets           []Net
	// Restore are a snapshot's layers, the oldest first, none to boot.
	Restore []vmm.Files
	// Pages brings the memory of what is restored, which then is one layer's
	// state; nil where it is in files.
	Pages *Pages
	// Incoming has the guest come from another monitor, instead of being
	// booted. It is to be as the rest says: CPUs, memory, devices.
	Incoming *Incoming
	// Paused leaves a machine that was restored so, until it is told to go on.
	Paused bool
	// Vsock is its socket device, nil for none.
	Vsock *Vsock
	// Ports are lines between programs in the guest and the host.
	Ports []Port
	// NoReboot has the guest end where it would be started anew.
	NoReboot bool
	// Console and Input are the serial port's other end; Input may be nil.
	Console io.Writer
	Input   io.Reader
	// Control is where requests come from, or nil.
	Control *net.UnixListener
	// Thread is called first on each vCPU's thread, if it isn't nil.
	Thread func() error
	// Notice is told what went wrong where nobody waits for an answer. It may
	// be nil.
	Notice func(error)
}

// Disk is one with its file.
type Disk struct {
	control.Disk
	File *os.File
	// Mirror has its content come with the guest that is awaited.
	Mirror bool
	// Changes is where marks in what is changed of it are kept beyond the
	// process (package record), or nil.
	Changes *os.File
}

// Net is a port with the queues of its tap.
type Net struct {
	control.Net
	Files []*os.File
}

// Monitor is a process's one guest.
type Monitor struct {
	sys    *kvm.System
	config Config
	// balloon is in every machine: by it a guest gives back what it doesn't
	// use.
	balloon   *balloon.Device
	pluggable *mem.Device  // nil where memory can't grow
	mapped    []vmm.Mapped // of Config.Pmem

	// life is held for writing while a machine is replaced by the next.
	life    sync.RWMutex
	machine *vmm.Machine
	resets  int

	mu      sync.Mutex // never held while the machine is asked for something
	devices []*device  // in the order in which they came
	lines   *lines     // nil without ports
	moves   moves

	fetching *fetching // nil where no memory comes after a restore
}

// errEnded is the answer while there is no machine.
var errEnded = errors.New("the guest has ended")

// New opens what a guest is made of. Run follows, once.
func New(sys *kvm.System, c Config) (*Monitor, error) {
	if c.Notice == nil {
		c.Notice = func(error) {}
	}
	m := &Monitor{sys: sys, config: c}
	m.balloon = balloon.New(balloon.Options{DeflateOnOOM: true})
	m.devices = append(m.devices,
		&device{Device: vmm.Device{Name: "rng", Device: rng.New()}, close: func() {}},
		&device{
			Device: vmm.Device{Name: "balloon", Device: m.balloon}, close: func() {},
			metrics: func() any { return m.balloon.Metrics() },
		})
	if err := m.addMemory(); err != nil {
		m.close()
		return nil, err
	}
	if len(c.Ports) > 0 {
		var err error
		if m.lines, err = newLines(c.Ports); err != nil {
			m.close()
			return nil, err
		}
		m.devices = append(m.devices, m.lines.device())
	}
	if c.Vsock != nil {
		dev, err := newVsock(*c.Vsock)
		if err == nil {
			err = m.keep(dev)
		}
		if err != nil {
			m.close()
			return nil, err
		}
	}
	lost := ""
	if c.Incoming != nil {
		lost = cameHere
	}
	for _, d := range c.Disks {
		dev, err := newDisk(d, lost, c.Notice)
		if err == nil {
			if d.Mirror {
				dev.renew = nil // nobody else writes to it
			}
			err = m.keep(dev)
		}
		if err != nil {
			m.close()
			return nil, err
		}
	}
	for _, n := range c.Nets {
		dev, err := newNet(n.Net, n.Files)
		if err == nil {
			err = m.keep(dev)
		}
		if err != nil {
			m.close()
			return nil, err
		}
	}
	if c.Incoming != nil {
		return m, nil
	}
	var err error
	if len(c.Restore) > 0 {
		m.machine, err = m.restore()
	} else {
		m.machine, err = m.boot()
	}
	if err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

// boot makes a machine with a fresh kernel.
func (m *Monitor) boot() (*vmm.Machine, error) {
	c := m.machineConfig()
	size, err := fileSize(m.config.Kernel)
	if err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	c.Linux = boot.Linux{Kernel: m.config.Kernel, Size: size, Command: m.config.Command}
	if m.config.Initrd != nil {
		if c.Linux.InitrdSize, err = fileSize(m.config.Initrd); err != nil {
			return nil, fmt.Errorf("initramfs: %w", err)
		}
		c.Linux.Initrd = io.NewSectionReader(m.config.Initrd, 0, c.Linux.InitrdSize)
	}
	return vmm.New(m.sys, c)
}

func (m *Monitor) machineConfig() vmm.Config {
	c := vmm.Config{
		CPUs: m.config.CPUs, Memory: m.config.Memory, HugePages: m.config.HugePages, CPU: m.config.CPU, DirtyRing: m.config.DirtyRing,
		Pluggable: m.more(), Mapped: m.mapped,
		Console: m.config.Console, Ejected: m.ejected, Thread: m.config.Thread,
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range m.devices {
		c.Devices = append(c.Devices, d.Device)
	}
	return c
}

func fileSize(f *os.File) (int64, error) {
	if f == nil {
		return 0, errors.New("there is none")
	}
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// Run lets the guest run until it ends for another reason than a reset, or
// ctx does, and closes all that it was made of.
func (m *Monitor) Run(ctx context.Context) (vmm.End, error) {
	defer m.close()
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	if m.config.Control != nil {
		wg.Go(func() { control.Serve(ctx, m.config.Control, m) })
	}
	if m.lines != nil {
		wg.Go(func() { m.lines.accept(ctx) })
	}
	if m.config.Input != nil {
		go m.input() // which nothing ends but the process's own end
	}
	if m.config.Incoming != nil {
		if err := m.arrive(ctx, &wg); err != nil {
			return vmm.End{}, err
		}
	}
	if len(m.config.Restore) > 0 && !m.config.Paused {
		if err := m.machine.Resume(); err != nil {
			return vmm.End{}, err
		}
	}
	for {
		end, err := m.machine.Run(ctx)
		if err != nil || end.Reason != vmm.Restart || m.config.Kernel == nil || m.config.NoReboot {
			if m.lines != nil {
				m.lines.Flush(flushTime)
			}
			return end, err
		}
		if err := m.next(); err != nil {
			return end, fmt.Errorf("reset: %w", err)
		}
	}
}

// next replaces a machine that asked for a reset.
func (m *Monitor) next() error {
	m.life.Lock()
	defer m.life.Unlock()
	err := m.machine.Close()
	m.machine = nil
	if err != nil {
		return err
	}
	if m.pluggable != nil {
		m.pluggable.Renew()
	}
	m.machine, err = m.boot()
	m.resets++
	return err
}

// input passes on what the guest shall receive. What comes while there is no
// machine is lost, as on a line.
func (m *Monitor) input() {
	b := make([]byte, 512)
	for {
		n, err := m.config.Input.Read(b)
		if err != nil {
			return
		}
		m.life.RLock()
		machine := m.machine
		m.life.RUnlock()
		if machine != nil {
			_, _ = machine.Console().Write(b[:n]) // until it is closed
		}
	}
}

// close ends the machine, if there is one, and all devices.
func (m *Monitor) close() {
	m.life.Lock()
	defer m.life.Unlock()
	_ = m.fetched() // Run has said why
	if m.machine != nil {
		_ = m.machine.Close()
		m.machine = nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range m.devices {
		if d.tracked != nil {
			d.tracked.elsewhere = !m.moves.settledHere()
		}
		d.close()
	}
	m.devices = nil
	for _, p := range m.mapped {
		_ = unix.Munmap(p.Host)
	}
	m.mapped = nil
}
