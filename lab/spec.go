package lab

import (
	"fmt"
	"regexp"

	"github.com/cleave-project/cleave/api"
)

// Spec is what a host is like.
type Spec struct {
	Name   string `json:"name"`
	CPUs   int    `json:"cpus"`
	Memory int64  `json:"memory"` // bytes
	// Disk is the size of the disk that it keeps, which holds /var.
	Disk int64 `json:"disk"`
	// KVM says that it can run virtual machines.
	KVM bool `json:"kvm,omitempty"`
	// Daemon says that it runs cleaved.
	Daemon bool `json:"daemon,omitempty"`
	// Files are shown in it below /lab: files of this machine by their paths
	// there.
	Files map[string]string `json:"files,omitempty"`
	// Args are more for the kernel's command line.
	Args string `json:"args,omitempty"`
}

// DefaultSpec is a host that fits beside others on a small machine.
func DefaultSpec(name string) Spec {
	return Spec{Name: name, CPUs: 1, Memory: 768 << 20, Disk: 8 << 30}
}

var hostName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,30}$`)

func (s *Spec) check() error {
	switch {
	case !hostName.MatchString(s.Name):
		return fmt.Errorf("a host can't be named %q: small letters, digits and hyphens, 31 at most", s.Name)
	case s.CPUs < 1 || s.CPUs > 64:
		return fmt.Errorf("host %s: %d processors", s.Name, s.CPUs)
	case s.Memory < 256<<20:
		return fmt.Errorf("host %s: %v of memory are less than 256 MiB", s.Name, api.Bytes(s.Memory))
	case s.Disk < 256<<20 || s.Disk%(1<<20) != 0:
		return fmt.Errorf("host %s: a disk has whole MiB, and 256 at least, and not %v", s.Name, api.Bytes(s.Disk))
	}
	return nil
}

// Need is something that a test needs of its hosts.
type Need func(*Spec)

// KVM is a host that can run virtual machines.
func KVM(s *Spec) { s.KVM = true }

// Daemon is a host that runs cleaved.
func Daemon(s *Spec) { s.Daemon = true }

// CPUs is a number of processors.
func CPUs(n int) Need { return func(s *Spec) { s.CPUs = n } }

// Memory is a size in bytes.
func Memory(size int64) Need { return func(s *Spec) { s.Memory = size } }

// Disk is the size in bytes of the disk that a host keeps.
func Disk(size int64) Need { return func(s *Spec) { s.Disk = size } }

// File shows a file of this machine in the hosts, at /lab/name.
func File(name, path string) Need {
	return func(s *Spec) {
		if s.Files == nil {
			s.Files = map[string]string{}
		}
		s.Files[name] = path
	}
}

// Args are for the kernel's command line.
func Args(words string) Need { return func(s *Spec) { s.Args += " " + words } }
