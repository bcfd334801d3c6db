package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/lab/appliance"
	"github.com/cleave-project/cleave/lab/wire"
)

// Emulator is the program that plays the hosts.
const Emulator = "qemu-system-x86_64"

// Options say what a lab is made of.
type Options struct {
	// Dir is the lab's own: disks, consoles and sockets. It must be short, as
	// the paths of sockets are.
	Dir   string
	Image *appliance.Image
	// Tell hears what is done; may be nil.
	Tell func(what string)
}

// Lab is a set of hosts on one wire.
type Lab struct {
	Options
	Wire *wire.Switch // whose ports have the hosts' names

	stall   time.Duration          // how long a host that boots may do nothing
	started func(h *Host, try int) // of tests: a host's QEMU was started

	lock *os.File

	mu     sync.Mutex
	hosts  []*Host
	closed bool
}

// lockDir takes the lock of a lab's directory, as long as the file is open.
func lockDir(dir string, flags int) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|flags, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return f, nil
}

// Check tells what this machine lacks for a lab.
func Check() error {
	if _, err := exec.LookPath(Emulator); err != nil {
		return api.Errorf(api.CodeUnsupported, "the lab needs an emulator: %w", err).WithHint("install qemu-system-x86")
	}
	if runtime.GOARCH != "amd64" {
		return api.Errorf(api.CodeUnsupported, "the lab's hosts are amd64, this machine is %s", runtime.GOARCH)
	}
	return nil
}

// New makes a lab without hosts.
func New(o Options) (*Lab, error) {
	if err := Check(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("directory of the lab: %w", err)
	}
	lock, err := lockDir(o.Dir, os.O_CREATE)
	if err != nil {
		return nil, fmt.Errorf("directory of the lab: %w", err)
	}
	if o.Tell == nil {
		o.Tell = func(string) {}
	}
	return &Lab{Options: o, Wire: wire.New(), stall: noProgress, lock: lock}, nil
}

// network is that of the hosts: the n-th one is n.
const network = "10.87.0."

// Add makes hosts, which are off.
func (l *Lab) Add(specs ...Spec) ([]*Host, error) {
	var added []*Host
	for _, s := range specs {
		h, err := l.add(s)
		if err != nil {
			return nil, err
		}
		added = append(added, h)
	}
	return added, nil
}

func (l *Lab) add(s Spec) (*Host, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, errors.New("the lab is closed")
	}
	if slices.ContainsFunc(l.hosts, func(h *Host) bool { return h.Name == s.Name }) {
		return nil, fmt.Errorf("there is a host %s", s.Name)
	}
	h, err := newHost(l, s, len(l.hosts)+1)
	if err != nil {
		return nil, fmt.Errorf("make host %s: %w", s.Name, err)
	}
	l.hosts = append(l.hosts, h)
	return h, nil
}

// Hosts are all hosts, in the order of their addresses.
func (l *Lab) Hosts() []*Host {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.hosts)
}

// Host finds a host.
func (l *Lab) Host(name string) (*Host, error) {
	hosts := l.Hosts()
	if i := slices.IndexFunc(hosts, func(h *Host) bool { return h.Name == name }); i >= 0 {
		return hosts[i], nil
	}
	return nil, api.Errorf(api.CodeNotFound, "the lab has no host %q", name).WithHint("see which there are: `lab list`")
}

// names are the names and addresses of all hosts, for their command lines.
func (l *Lab) names() string {
	var list []string
	for _, h := range l.Hosts() {
		list = append(list, h.Name+":"+h.Address)
	}
	return strings.Join(list, ",")
}

// Boot starts hosts, and waits until their agents answer: no more at a time
// than have a processor each.
func (l *Lab) Boot(ctx context.Context, hosts ...*Host) error {
	all, ctx := errgroup.WithContext(ctx)
	all.SetLimit(max(1, runtime.NumCPU()/2))
	for _, h := range hosts {
		all.Go(func() error { return h.Boot(ctx) })
	}
	return all.Wait()
}

// Change is a rule of the wire between two hosts, or between one and all
// others.
type Change struct {
	From   string    `json:"from"`
	To     string    `json:"to,omitempty"`     // all others if empty
	OneWay bool      `json:"oneWay,omitempty"` // else in both directions
	Rule   wire.Rule `json:"rule"`
}

// Link sets rules of the wire. The zero rule heals.
func (l *Lab) Link(c Change) error {
	from, err := l.Host(c.From)
	if err != nil {
		return err
	}
	others := l.Hosts()
	if c.To != "" {
		to, err := l.Host(c.To)
		if err != nil {
			return err
		}
		if to == from {
			return fmt.Errorf("%s and %s are the same host", c.From, c.To)
		}
		others = []*Host{to}
	}
	for _, to := range others {
		if to == from {
			continue
		}
		if err := l.Wire.Set(from.Name, to.Name, c.Rule); err != nil {
			return err
		}
		if c.OneWay {
			continue
		}
		if err := l.Wire.Set(to.Name, from.Name, c.Rule); err != nil {
			return err
		}
	}
	return nil
}

// Close ends all hosts, as if they lost their power, and removes what the lab
// kept.
func (l *Lab) Close() error {
	l.mu.Lock()
	hosts := l.hosts
	l.hosts, l.closed = nil, true
	l.mu.Unlock()
	var errs []error
	for _, h := range hosts {
		errs = append(errs, h.close())
	}
	defer l.lock.Close()
	return errors.Join(append(errs, os.RemoveAll(l.Dir))...)
}

// path is that of a host's file.
func (h *Host) path(kind string) string { return filepath.Join(h.lab.Dir, h.Name+"."+kind) }
