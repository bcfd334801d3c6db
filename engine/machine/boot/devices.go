package boot

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// Names of disks, as machine.DiskName makes them.
const (
	diskImage   = "image"
	diskRoot    = "root"
	diskControl = "control"
	diskVolume  = "volume-"
)

// uevents are what the kernel tells of devices that come.
type uevents struct{ fd int }

func newUevents() (*uevents, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1})
	}
	if err != nil {
		return nil, fmt.Errorf("listen to the kernel's device events: %w", err)
	}
	return &uevents{fd}, nil
}

// until waits until found returns a name, and looks again whenever something
// has come. It returns an empty one when the time is up.
func (u *uevents) until(grace time.Duration, found func() string) string {
	for deadline := time.Now().Add(grace); ; {
		if name := found(); name != "" {
			return name
		}
		left := time.Until(deadline)
		if left <= 0 {
			return ""
		}
		poll := []unix.PollFd{{Fd: int32(u.fd), Events: unix.POLLIN}}
		if n, _ := unix.Poll(poll, int(left.Milliseconds())+1); n > 0 {
			u.drain()
		}
	}
}

// drain reads all events there are. That some were lost doesn't matter.
func (u *uevents) drain() {
	var buf [8 << 10]byte
	for {
		_, err := unix.Read(u.fd, buf[:])
		if err != nil && err != unix.EINTR && err != unix.ENOBUFS {
			return
		}
	}
}

func (u *uevents) close() { unix.Close(u.fd) }

// findDisk finds the device of a disk.
func (m *machine) findDisk(name string, grace time.Duration) (string, error) {
	find := func() string { return diskBySerial(name) }
	if m.byOrder {
		find = func() string {
			if dev := diskBySerial(name); dev != "" {
				return dev
			}
			return present("/dev/ubd" + string(rune('a'+diskPlace(name, m.boot != nil && m.boot.Modules != ""))))
		}
	}
	dev := m.events.until(grace, find)
	if dev == "" {
		return "", api.Errorf(api.CodeUnavailable, "find the disk %q: the machine has none of that name", name).
			WithHint("its kernel may lack a module for disks")
	}
	return dev, nil
}

// diskPlace is a disk's where disks have no names. A disk of modules is the
// one after the control disk, which tells of it.
func diskPlace(name string, modules bool) int {
	for i, n := range []string{diskImage, diskRoot, diskControl, diskModules} {
		if n == name {
			return i
		}
	}
	n, err := strconv.Atoi(strings.TrimPrefix(name, diskVolume))
	if err != nil {
		n = 'z' // nothing is there
	}
	if modules {
		n++
	}
	return 3 + n
}

// present is the name of a file if it exists.
func present(name string) string {
	if _, err := os.Lstat(name); err != nil {
		return ""
	}
	return name
}

func diskBySerial(name string) string {
	return byAttribute("/sys/block", "serial", name)
}

// byAttribute finds the device of a class whose attribute has a value.
func byAttribute(class, attribute, value string) string {
	entries, _ := os.ReadDir(class)
	for _, e := range entries {
		b, err := os.ReadFile(path.Join(class, e.Name(), attribute))
		if err == nil && strings.TrimSpace(string(b)) == value {
			return present(path.Join("/dev", e.Name()))
		}
	}
	return ""
}

// openLine opens a line to the host: on QEMU the virtio-serial port of that
// name, else the serial line.
func (m *machine) openLine(name, line string) (*port, error) {
	dev := "/dev/" + line
	if !m.byOrder {
		dev = m.events.until(deviceGrace, func() string { return byAttribute("/sys/class/virtio-ports", "name", name) })
		if dev == "" {
			return nil, api.Errorf(api.CodeUnavailable, "find the port %s: the machine has none of that name", name)
		}
	}
	return openPort(dev)
}

// nicByMAC finds an interface's name.
func nicByMAC(mac string) string {
	entries, _ := os.ReadDir("/sys/class/net")
	for _, e := range entries {
		b, err := os.ReadFile(path.Join("/sys/class/net", e.Name(), "address"))
		if err == nil && strings.EqualFold(strings.TrimSpace(string(b)), mac) && e.Name() != "lo" {
			return e.Name()
		}
	}
	return ""
}

// explain is err with what it means for a disk.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EUCLEAN), errors.Is(err, unix.EBADMSG):
		return fmt.Errorf("%w: what is on it is damaged", err)
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%w: the kernel doesn't know the file system", err)
	}
	return err
}
