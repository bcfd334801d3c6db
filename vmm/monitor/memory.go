package monitor

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/vmm"
	"github.com/cleave-project/cleave/vmm/control"
	"github.com/cleave-project/cleave/vmm/memory"
	"github.com/cleave-project/cleave/vmm/virtio/mem"
	"github.com/cleave-project/cleave/vmm/virtio/pmem"
)

// Pmem is persistent memory that a guest can only read: a file, whose pages
// the host keeps once for all guests that have it. It must stay as large as it
// is.
type Pmem struct {
	Name string
	File *os.File
}

// addMemory adds what there is of memory beside the machine's own.
func (m *Monitor) addMemory() error {
	if max := m.config.MaxMemory; max > m.config.Memory {
		d, err := mem.New(mem.Options{Addr: memory.PluggableAddr(m.config.Memory), Size: max - m.config.Memory})
		if err != nil {
			return err
		}
		m.pluggable = d
		if err := m.keep(&device{Device: vmm.Device{Name: "memory", Device: d}, close: func() {}}); err != nil {
			return err
		}
	}
	at := vmm.MappedAddr(m.config.Memory, m.more())
	for _, p := range m.config.Pmem {
		host, err := mapped(p.File)
		if err != nil {
			return fmt.Errorf("persistent memory %q: %w", p.Name, err)
		}
		d, err := pmem.New(pmem.Options{Start: at, Size: uint64(len(host))})
		if err != nil {
			return err
		}
		m.mapped = append(m.mapped, vmm.Mapped{Addr: at, Host: host})
		at += uint64(len(host))
		if err := m.keep(&device{Device: vmm.Device{Name: p.Name, Device: d}, close: func() {}}); err != nil {
			return err
		}
	}
	return nil
}

// more is how much memory the guest may have beyond that at its start.
func (m *Monitor) more() uint64 {
	if m.pluggable == nil {
		return 0
	}
	return m.config.MaxMemory - m.config.Memory
}

// mapped takes a file over and maps it: as much of it as there is, and zeroes
// up to what a guest's pages need. It is a private copy, for what devices
// are told to write there; the guest itself can't.
func mapped(f *os.File) ([]byte, error) {
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() == 0 || st.Size() > math.MaxInt64/2 {
		return nil, errors.New("it is no file with something in it")
	}
	size := (int(st.Size()) + pmem.Align - 1) / pmem.Align * pmem.Align
	const access, flags = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_PRIVATE | unix.MAP_NORESERVE
	host, err := unix.Mmap(-1, 0, size, access, flags|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	_, err = unix.MmapPtr(int(f.Fd()), 0, unsafe.Pointer(unsafe.SliceData(host)), uintptr(st.Size()), access, flags|unix.MAP_FIXED)
	if err != nil {
		_ = unix.Munmap(host)
		return nil, err
	}
	return host, nil
}

// SetMemory implements control.Machine: more than the guest had at its start is
// plugged, and of what is less the balloon takes the rest.
func (m *Monitor) SetMemory(ctx context.Context, s control.SetMemory) error {
	var ram uint64
	if err := m.with(func(machine *vmm.Machine) error { ram = machine.Memory(); return nil }); err != nil {
		return err
	}
	if most := ram + m.more(); s.Bytes == 0 || s.Bytes > most {
		return fmt.Errorf("leave the guest %d bytes of memory: it may have %d", s.Bytes, most)
	}
	before, _ := m.balloon.Size()
	plugged := uint64(0)
	if m.pluggable != nil {
		plugged, _ = m.pluggable.Size()
	}
	if err := m.setMemory(ram-min(s.Bytes, ram), max(s.Bytes, ram)-ram); err != nil {
		return err
	}
	if s.Wait <= 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.Wait)
	defer cancel()
	err := m.balloon.Wait(ctx)
	if err == nil && m.pluggable != nil {
		err = m.pluggable.Wait(ctx)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("leave the guest %d bytes of memory: %w", s.Bytes, err), m.setMemory(before, plugged))
	}
	return nil
}

// setMemory says how much the balloon is to take, and how much is to be
// plugged, in whole blocks.
func (m *Monitor) setMemory(balloon, plugged uint64) error {
	if err := m.balloon.SetTarget(balloon); err != nil || m.pluggable == nil {
		return err
	}
	return m.pluggable.SetRequested((plugged + mem.BlockSize - 1) / mem.BlockSize * mem.BlockSize)
}
