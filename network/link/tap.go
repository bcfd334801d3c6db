package link

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/network/internal/netns"
)

// tunDevice makes tap devices (Documentation/networking/tuntap.rst).
const tunDevice = "/dev/net/tun"

// tapFlags are of every tap device: frames without packet information, each
// after the header of a virtio network device (virtio 1.2, 5.1.6), by which
// checksums and segmentation are left to the other side.
const tapFlags = unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR

// Tap is a guest's port whose other end is a descriptor.
type Tap struct {
	Name   string
	MAC    net.HardwareAddr
	Group  uint32
	Bridge int // index
	MTU    int
	IPv6   bool // whether the host has IPv6 at all
}

// AddTap makes the port, set up like a veth's end on the host, and returns it
// with its index. It lives as long as the descriptor, so that a crash leaves
// nothing. A link of that name is EBUSY.
func (c *Conn) AddTap(t Tap) (*os.File, int, error) {
	f, err := openTap(t.Name, unix.IFF_TUN_EXCL)
	if err != nil {
		return nil, 0, fmt.Errorf("make tap %s: %w", t.Name, err)
	}
	index, err := c.Index(t.Name)
	if err == nil {
		err = c.place(index, t)
	}
	if err == nil {
		err = c.configure(index, t.IPv6, true)
	}
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("set up tap %s: %w", t.Name, err), f.Close())
	}
	return f, index, nil
}

// openTap attaches to the tap device called name, or makes it.
func openTap(name string, more uint16) (*os.File, error) {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return nil, fmt.Errorf("link name %q: %w", name, err)
	}
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: tunDevice, Err: err}
	}
	req.SetUint16(tapFlags | more)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("TUNSETIFF", err)
	}
	// Only now, since the poller takes no descriptor without a device.
	return os.NewFile(uintptr(fd), name), nil
}

// place gives a tap what a veth has from its making.
func (c *Conn) place(index int, t Tap) error {
	r := c.request(unix.RTM_NEWLINK, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	r.AddData(msg)
	r.AddData(nl.NewRtAttr(unix.IFLA_ADDRESS, t.MAC))
	r.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(t.MTU))))
	r.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(t.Group)))
	r.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(t.Bridge))))
	if t.IPv6 {
		r.AddData(unaddressed())
	}
	_, err := r.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// Patch makes a tap device called name in the network namespace of pid, which
// the process with the host's id owner may open by that name without any
// privilege, as often as it likes, and joins it with the link called to: what
// comes in by one goes out by the other, and nothing of it is seen by the
// namespace's own stack. The device ends with the namespace.
func Patch(pid int, name, to string, owner uint32) error {
	err := netns.OnOwnThread(func() error {
		ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
		if err != nil {
			return err
		}
		defer func() { _ = ns.Close() }()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter the namespace: %w", err)
		}
		if err := makeTap(name, owner); err != nil {
			return err
		}
		c, err := Dial()
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		return c.join(name, to)
	})
	if err != nil {
		return fmt.Errorf("patch %s to %s in the network namespace of process %d: %w", name, to, pid, err)
	}
	return nil
}

// makeTap makes a device that outlives its descriptors.
func makeTap(name string, owner uint32) error {
	f, err := openTap(name, unix.IFF_TUN_EXCL)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = errors.Join(
			os.NewSyscallError("TUNSETOWNER", unix.IoctlSetInt(int(fd), unix.TUNSETOWNER, int(owner))),
			os.NewSyscallError("TUNSETPERSIST", unix.IoctlSetInt(int(fd), unix.TUNSETPERSIST, 1)),
		)
	})
	return errors.Join(err, failed)
}

// join connects two links of the connection's namespace.
func (c *Conn) join(tap, to string) error {
	t, err := c.Index(tap)
	if err != nil {
		return err
	}
	other, err := c.LinkByName(to)
	if err != nil {
		return fmt.Errorf("find link %s: %w", to, err)
	}
	l := other.Attrs().Index
	_, noIPv6 := os.Stat("/proc/thread-self/net/if_inet6")
	for _, pair := range [][2]int{{t, l}, {l, t}} {
		if err := c.prepare(pair[0], other.Attrs().MTU, noIPv6 == nil); err != nil {
			return fmt.Errorf("prepare: %w", err)
		}
		if err := c.redirect(pair[0], pair[1]); err != nil {
			return err
		}
		if err := c.configure(pair[0], noIPv6 == nil, false); err != nil {
			return fmt.Errorf("set up: %w", err)
		}
	}
	return nil
}

// prepare says of a link what must be said before it is up.
func (c *Conn) prepare(index, mtu int, ipv6 bool) error {
	r := c.request(unix.RTM_NEWLINK, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	r.AddData(msg)
	r.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(mtu))))
	if ipv6 {
		r.AddData(unaddressed())
	}
	_, err := r.Execute(unix.NETLINK_ROUTE, 0)
	return err
}
