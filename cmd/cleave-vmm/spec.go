package main

import (
	"cmp"
	"fmt"
	"net"
	"os"

	"github.com/cleave-project/cleave/vmm"
	"github.com/cleave-project/cleave/vmm/control"
	"github.com/cleave-project/cleave/vmm/monitor"
)

// spec is what a command line says, with the files that it names as numbers
// in a list of open ones: so it passes from a process to one that is shut in.
type spec struct {
	CPUs   int
	Memory uint64
	Max    uint64
	Huge   bool
	// DirtyRing has rings tell what of memory is written.
	DirtyRing bool
	CPU       string
	Command   string
	Paused    bool
	KVM       int
	Kernel    int // 0, which is KVM's, for none; so are the others
	Initrd    int
	Control   int
	Disks     []diskSpec
	Nets      []netSpec
	Ports     []portSpec
	Pmem      []portSpec
	Vsock     *vsockSpec
	Incoming  *incomingSpec
	Console   int // the serial port's other end, instead of the standard streams
	End       int // where the reason of the guest's end is noted
	NoReboot  bool
	Restore   [][2]int // state and memory
	Pages     *pagesSpec

	files   []*os.File
	sockets []string        // that were made
	dialer  *monitor.Dialer // of Vsock
}

// close ends what works for the machine beside it.
func (s *spec) close() {
	if s.dialer != nil {
		s.dialer.Close()
	}
	for _, name := range s.sockets {
		os.Remove(name)
	}
}

type vsockSpec struct {
	CID            uint32
	Listener, Dial int // 0 for none
}

type diskSpec struct {
	control.Disk
	File    int
	Mirror  bool
	Changes int // where marks in what is changed are kept, 0 for none
}

type netSpec struct {
	control.Net
	Files []int // a queue of the tap each
}

type portSpec struct {
	Name string
	File int
}

// add notes a file, and returns its number.
func (s *spec) add(f *os.File) int {
	s.files = append(s.files, f)
	return len(s.files) - 1
}

func (s *spec) file(n int) (*os.File, error) {
	if n < 0 || n >= len(s.files) {
		return nil, fmt.Errorf("there is no file %d of %d", n, len(s.files))
	}
	return s.files[n], nil
}

// config is the spec with its files.
func (s *spec) config() (*monitor.Config, error) {
	c := &monitor.Config{CPUs: s.CPUs, Memory: s.Memory, MaxMemory: s.Max, HugePages: s.Huge, DirtyRing: s.DirtyRing, CPU: s.CPU, Command: s.Command, Paused: s.Paused, NoReboot: s.NoReboot}
	var errs []error
	file := func(n int) *os.File {
		f, err := s.file(n)
		errs = append(errs, err)
		return f
	}
	optional := func(n int) *os.File {
		if n == 0 {
			return nil
		}
		return file(n)
	}
	c.Kernel, c.Initrd = optional(s.Kernel), optional(s.Initrd)
	for _, d := range s.Disks {
		c.Disks = append(c.Disks, monitor.Disk{Disk: d.Disk, File: file(d.File), Mirror: d.Mirror, Changes: optional(d.Changes)})
	}
	for _, n := range s.Nets {
		port := monitor.Net{Net: n.Net}
		for _, i := range n.Files {
			port.Files = append(port.Files, file(i))
		}
		c.Nets = append(c.Nets, port)
	}
	for _, p := range s.Ports {
		c.Ports = append(c.Ports, monitor.Port{Name: p.Name, File: file(p.File)})
	}
	for _, p := range s.Pmem {
		c.Pmem = append(c.Pmem, monitor.Pmem{Name: p.Name, File: file(p.File)})
	}
	for _, r := range s.Restore {
		c.Restore = append(c.Restore, vmm.Files{State: file(r[0]), Memory: optional(r[1])})
	}
	if v := s.Vsock; v != nil {
		c.Vsock = &monitor.Vsock{CID: v.CID, Listener: optional(v.Listener), Dial: optional(v.Dial)}
	}
	socket := optional(s.Control)
	err := cmp.Or(errs...) // the first
	if err == nil && s.Incoming != nil {
		c.Incoming, err = s.Incoming.config(s)
	}
	if err == nil && s.Pages != nil {
		c.Pages, err = s.Pages.config(s)
	}
	if err == nil && socket != nil {
		c.Control, err = listener(socket)
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

// listener is an open socket as one that listens.
func listener(f *os.File) (*net.UnixListener, error) {
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		l.Close()
		return nil, fmt.Errorf("control socket: %s is no unix socket that listens", f.Name())
	}
	return u, nil
}
