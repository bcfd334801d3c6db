package boot

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/agent/guest"
	"github.com/cleave-project/cleave/agent/wire"
	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine/internal/nic"
)

// plugs are the devices that came while the machine runs. It implements
// guest.Devices: the host plugs a disk and asks for it to be mounted, and asks
// for it to be unmounted before it unplugs it.
type plugs struct {
	mu     sync.Mutex
	mounts map[string]*os.File // by target; those that can be written
}

var _ guest.Devices = (*plugs)(nil)

func (m *machine) plugs() *plugs {
	m.plugged = &plugs{mounts: map[string]*os.File{}}
	return m.plugged
}

// files are the file systems that can be written.
func (p *plugs) files() []*os.File {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []*os.File
	for _, f := range p.mounts {
		all = append(all, f)
	}
	return all
}

// device waits for what find finds.
func device(what string, find func() string) (string, error) {
	events, err := newUevents()
	if err != nil {
		return "", err
	}
	defer events.close()
	if name := events.until(deviceGrace, find); name != "" {
		return name, nil
	}
	return "", api.Errorf(api.CodeUnavailable, "%s: it has not come within %v", what, deviceGrace).
		WithHint("the guest's kernel may lack a module for devices that are plugged while it runs")
}

// Mount implements guest.Devices.
func (p *plugs) Mount(v wire.Volume) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	dev, err := device("find the disk "+v.Disk, func() string { return diskBySerial(v.Disk) })
	if err != nil {
		return err
	}
	if same, err := holds(v.Target, dev); err != nil || same {
		return err
	}
	return p.mount(dev, v)
}

// holds tells whether the file system at target is the one on the disk dev.
func holds(target, dev string) (bool, error) {
	var at, disk unix.Stat_t
	if err := unix.Stat(dev, &disk); err != nil {
		return false, fmt.Errorf("%s: %w", dev, err)
	}
	if err := unix.Stat(target, &at); err != nil {
		return false, nil // it is made with the mount, or that says what is wrong
	}
	return at.Dev == disk.Rdev, nil
}

func (p *plugs) mount(dev string, v wire.Volume) error {
	f, err := mountVolume(dev, v.ReadOnly)
	if err != nil {
		return api.Errorf(api.CodeInvalid, "mount the disk %q for %s: %w", v.Disk, v.Target, explain(err))
	}
	root, err := openDir("/")
	if err == nil {
		err = (&machine{root: root}).place(f, v.Target, true)
		root.Close()
	}
	if err != nil || v.ReadOnly {
		f.Close()
		return err
	}
	p.mounts[v.Target] = f
	return nil
}

// Grow implements guest.Devices.
func (p *plugs) Grow(v wire.Volume) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	dev := diskBySerial(v.Disk)
	if dev == "" {
		return api.Errorf(api.CodeNotFound, "grow the disk %q: the machine has none of that name", v.Disk)
	}
	return grow(dev)
}

// Unmount implements guest.Devices. What is used stays mounted.
func (p *plugs) Unmount(v wire.Volume) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	dev := diskBySerial(v.Disk)
	if dev == "" {
		p.forget(v.Target)
		return nil
	}
	same, err := holds(v.Target, dev)
	if err != nil {
		return err
	}
	if same {
		if err := p.take(v.Target); err != nil {
			return err
		}
	}
	// The guest may have mounted it elsewhere, or uses the disk itself.
	if err := exclusive(dev); err != nil {
		if same {
			err = errors.Join(err, p.mount(dev, v))
		}
		return err
	}
	return nil
}

func (p *plugs) forget(target string) {
	if f := p.mounts[target]; f != nil {
		f.Close()
		delete(p.mounts, target)
	}
}

// take unmounts what is at a target, all or nothing.
func (p *plugs) take(target string) error {
	had := p.mounts[target] != nil
	p.forget(target) // our own descriptor would be a user of it
	err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
	if err == nil {
		return nil
	}
	if had {
		if f, oerr := openDir(target); oerr == nil {
			p.mounts[target] = f
		}
	}
	if errors.Is(err, unix.EBUSY) {
		return inUse(target)
	}
	return fmt.Errorf("unmount %s: %w", target, err)
}

func inUse(what string) error {
	return api.Errorf(api.CodeInUse, "%s is in use in the guest", what).
		WithHint("end what has files or its working directory there, like `fuser -vm %s` shows in the guest, or stop the guest", what)
}

// exclusive tells whether nobody has a disk mounted or open for itself.
func exclusive(dev string) error {
	fd, err := unix.Open(dev, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if err == nil {
		return unix.Close(fd)
	}
	if errors.Is(err, unix.EBUSY) {
		return inUse(dev)
	}
	return fmt.Errorf("%s: %w", dev, err)
}

// linkTries is how often an interface is configured that somebody else names
// at the same time: udev does, when it is new.
const linkTries = 5

// Link implements guest.Devices.
func (p *plugs) Link(l wire.Link) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, err := device("find the interface "+l.Name, func() string { return nicByMAC(l.MAC) }); err != nil {
		return err
	}
	for try := 1; ; try++ {
		err := configure(l)
		if err == nil || try == linkTries {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func configure(l wire.Link) error {
	have := nicByMAC(l.MAC)
	if have == "" {
		return api.Errorf(api.CodeUnavailable, "the interface %s went again", l.Name)
	}
	if have != l.Name {
		// One that is up keeps its name.
		if err := nic.Down(have); err != nil {
			return err
		}
		if err := nic.Rename(map[string]string{have: l.Name}); err != nil {
			return err
		}
	}
	return nic.Configure([]nic.NIC{{Name: l.Name, MTU: l.MTU, Prefixes: l.Prefixes, Gateways: l.Gateways}}, (&machine{}).sysctl)
}
