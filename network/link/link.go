// Package link speaks rtnetlink for what a launch needs: ports made with
// both ends in place by one message, in a few more than that ready for use;
// and tap devices, which are ports whose other end is a descriptor.
// Everything else about links goes through the handle of
// github.com/vishvananda/netlink that a Conn carries.
//
// A Conn stays in the network namespace that it was dialled in and may be
// used from any goroutine; requests are answered one after the other.
package link

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Conn is a connection to rtnetlink.
type Conn struct {
	*netlink.Handle
	sockets map[int]*nl.SocketHandle
	control *os.File // any socket, for ioctls
}

// Dial connects to the current network namespace.
func Dial() (*Conn, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("connect to rtnetlink: %w", err)
	}
	// A dump of a thousand links comes in many messages.
	if err := h.SetSocketReceiveBufferSize(4<<20, true); err != nil {
		h.Close()
		return nil, fmt.Errorf("enlarge rtnetlink's buffer: %w", err)
	}
	s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("connect to rtnetlink: %w", err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		h.Close()
		s.Close()
		return nil, fmt.Errorf("open a socket: %w", err)
	}
	return &Conn{
		Handle:  h,
		sockets: map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}},
		control: os.NewFile(uintptr(fd), "control"),
	}, nil
}

// Close ends the connection.
func (c *Conn) Close() error {
	c.Handle.Close()
	c.sockets[unix.NETLINK_ROUTE].Close()
	return c.control.Close()
}

func (c *Conn) request(kind, flags int) *nl.NetlinkRequest {
	r := nl.NewNetlinkRequest(kind, flags|unix.NLM_F_ACK)
	r.Sockets = c.sockets
	return r
}

// Index is the interface index of the link called name, or ENODEV.
func (c *Conn) Index(name string) (int, error) {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return 0, fmt.Errorf("link name %q: %w", name, err)
	}
	if err := unix.IoctlIfreq(int(c.control.Fd()), unix.SIOCGIFINDEX, req); err != nil {
		return 0, fmt.Errorf("find link %s: %w", name, err)
	}
	return int(req.Uint32()), nil
}

// Veth is a guest's port: one end on a bridge of the host, the other in the
// guest's network namespace.
type Veth struct {
	Name    string
	MAC     net.HardwareAddr
	Group   uint32
	Bridge  int // index
	MTU     int
	IPv6    bool // whether the host has IPv6 at all
	Peer    string
	PeerMAC net.HardwareAddr
	PID     int // of a process in the guest's namespace
}

// AddVeth makes the port and returns the index of the host's end, which is
// up, teaches the bridge nothing and has no address of its own. The guest's
// end is down. When anything fails nothing is left.
func (c *Conn) AddVeth(v Veth) (int, error) {
	if err := c.create(v); err != nil {
		return 0, fmt.Errorf("make link %s: %w", v.Name, err)
	}
	index, err := c.Index(v.Name)
	if err == nil {
		err = c.configure(index, v.IPv6, true)
	}
	if err != nil {
		return 0, errors.Join(fmt.Errorf("set up link %s: %w", v.Name, err), c.Delete(v.Name))
	}
	return index, nil
}

// create makes both ends in their places with one message, so that a crash
// leaves either a port of the right group on its bridge or nothing.
func (c *Conn) create(v Veth) error {
	r := c.request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	r.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	one, mtu := nl.Uint32Attr(1), nl.Uint32Attr(uint32(v.MTU))
	for _, a := range []*nl.RtAttr{
		nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(v.Name)),
		nl.NewRtAttr(unix.IFLA_ADDRESS, v.MAC),
		nl.NewRtAttr(unix.IFLA_MTU, mtu),
		nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(v.Group)),
		nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(v.Bridge))),
		// The kernel would make a queue for each CPU, of some KiB each.
		nl.NewRtAttr(unix.IFLA_NUM_TX_QUEUES, one),
		nl.NewRtAttr(unix.IFLA_NUM_RX_QUEUES, one),
	} {
		r.AddData(a)
	}
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC)
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(v.Peer))
	peer.AddRtAttr(unix.IFLA_ADDRESS, v.PeerMAC)
	peer.AddRtAttr(unix.IFLA_MTU, mtu)
	peer.AddRtAttr(unix.IFLA_NUM_TX_QUEUES, one)
	peer.AddRtAttr(unix.IFLA_NUM_RX_QUEUES, one)
	peer.AddRtAttr(unix.IFLA_NET_NS_PID, nl.Uint32Attr(uint32(v.PID)))
	r.AddData(info)
	_, err := r.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// Of linux/if_link.h.
const (
	inet6AddrGenMode = 8 // IFLA_INET6_ADDR_GEN_MODE
	addrGenNone      = 1 // IN6_ADDR_GEN_MODE_NONE
)

// configure sets a link up, without any address. If it is a port of a bridge,
// that treats it as the port of one guest.
func (c *Conn) configure(index int, ipv6, port bool) error {
	r := c.request(unix.RTM_NEWLINK, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index, msg.Flags, msg.Change = int32(index), unix.IFF_UP, unix.IFF_UP
	r.AddData(msg)
	if ipv6 {
		r.AddData(unaddressed())
	}
	if port {
		r.AddData(portInfo())
	}
	_, err := r.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// unaddressed keeps the kernel from giving a link an IPv6 address, so that
// there's no duplicate detection and no listener reports for each of a
// thousand ports. A link that has a carrier as soon as it is up must be told
// before.
func unaddressed() *nl.RtAttr {
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	spec.AddRtAttr(unix.AF_INET6, nil).AddRtAttr(inet6AddrGenMode, nl.Uint8Attr(addrGenNone))
	return spec
}

// portInfo says how a bridge is to treat the port of one guest.
func portInfo() *nl.RtAttr {
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_SLAVE_KIND, nl.NonZeroTerminated("bridge"))
	port := info.AddRtAttr(nl.IFLA_INFO_SLAVE_DATA, nil)
	// The one MAC behind the port is known; frames to another are not for it.
	port.AddRtAttr(nl.IFLA_BRPORT_LEARNING, nl.Uint8Attr(0))
	port.AddRtAttr(nl.IFLA_BRPORT_UNICAST_FLOOD, nl.Uint8Attr(0))
	// A guest may ask for a port that it publishes itself: where bridges
	// call iptables, the packet is turned around without leaving the bridge.
	port.AddRtAttr(nl.IFLA_BRPORT_MODE, nl.Uint8Attr(1))
	return info
}

// Delete removes the link called name; it is no error when it is gone.
func (c *Conn) Delete(name string) error {
	r := c.request(unix.RTM_DELLINK, 0)
	r.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	r.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	_, err := r.Execute(unix.NETLINK_ROUTE, 0)
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete link %s: %w", name, err)
	}
	return nil
}

// DeleteGroup removes all links of a group at the price of one.
func (c *Conn) DeleteGroup(group uint32) error {
	r := c.request(unix.RTM_DELLINK, 0)
	r.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	r.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(group)))
	_, err := r.Execute(unix.NETLINK_ROUTE, 0)
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete links of group %d: %w", group, err)
	}
	return nil
}
