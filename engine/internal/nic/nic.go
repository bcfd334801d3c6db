// Package nic configures network interfaces from inside of a guest. Its few
// rtnetlink(7) messages are written by hand because a netlink library costs
// every guest some 100 KiB.
package nic

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// NIC is an interface that is there, and what it is to have.
type NIC struct {
	Name     string
	MTU      int
	Prefixes []netip.Prefix
	Gateways []netip.Addr
}

// Configure brings the loopback and the interfaces up and gives these their
// addresses and routes. sysctl writes a setting below /proc/sys.
func Configure(nics []NIC, sysctl func(name, value string) error) error {
	var r requests
	r.up("lo", 0)
	for _, n := range nics {
		for _, key := range []string{"accept_ra", "accept_dad"} {
			// The addresses are ours and known to be free. A kernel without
			// IPv6 has no such file.
			if err := sysctl("net/ipv6/conf/"+n.Name+"/"+key, "0"); err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("configure %s: %w", n.Name, err)
			}
		}
		r.up(n.Name, n.MTU)
	}
	if err := r.send(); err != nil {
		return err
	}
	r = requests{}
	for _, n := range nics {
		index, err := ifindex(n.Name)
		if err != nil {
			return fmt.Errorf("configure %s: %w", n.Name, err)
		}
		for _, p := range n.Prefixes {
			r.address(n.Name, index, p)
		}
		for _, g := range n.Gateways {
			r.gateway(n.Name, index, g)
		}
	}
	return r.send()
}

// Rename gives interfaces, which are down, new names. They may be each
// other's old ones.
func Rename(names map[string]string) error {
	aside, last := requests{}, requests{}
	for from, to := range names {
		if from == to {
			continue
		}
		index, err := ifindex(from)
		if err != nil {
			return fmt.Errorf("rename %s to %s: %w", from, to, err)
		}
		aside.rename(index, fmt.Sprintf("nic%d", index))
		last.rename(index, to)
	}
	if err := aside.send(); err != nil {
		return err
	}
	return last.send()
}

// Down sets an interface down.
func Down(name string) error {
	return one(name, func(r *requests, index uint32) { r.down(index, name) })
}

// Remove deletes an interface that has no hardware, like a veth.
func Remove(name string) error {
	return one(name, func(r *requests, index uint32) { r.remove(index, name) })
}

// one sends one message about an interface.
func one(name string, message func(*requests, uint32)) error {
	index, err := ifindex(name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	var r requests
	message(&r, index)
	return r.send()
}

func ifindex(name string) (uint32, error) {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(s)
	req, err := unix.NewIfreq(name)
	if err == nil {
		err = unix.IoctlIfreq(s, unix.SIOCGIFINDEX, req)
	}
	if err != nil {
		return 0, err
	}
	return req.Uint32(), nil
}

// requests are rtnetlink messages to be sent as one, each acknowledged.
type requests struct {
	buf  []byte
	what []string
}

// add appends a message; its sequence number is its place, from 1.
func (r *requests) add(what string, kind, flags uint16, body []byte) {
	r.what = append(r.what, what)
	size := unix.SizeofNlMsghdr + len(body)
	r.buf = binary.NativeEndian.AppendUint32(r.buf, uint32(size))
	r.buf = binary.NativeEndian.AppendUint16(r.buf, kind)
	r.buf = binary.NativeEndian.AppendUint16(r.buf, unix.NLM_F_REQUEST|unix.NLM_F_ACK|flags)
	r.buf = binary.NativeEndian.AppendUint32(r.buf, uint32(len(r.what)))
	r.buf = binary.NativeEndian.AppendUint32(r.buf, 0)
	r.buf = append(r.buf, body...)
	for len(r.buf)%unix.NLMSG_ALIGNTO != 0 {
		r.buf = append(r.buf, 0)
	}
}

// attr appends an attribute to a message's body.
func attr(body []byte, kind uint16, value []byte) []byte {
	body = binary.NativeEndian.AppendUint16(body, uint16(unix.SizeofRtAttr+len(value)))
	body = binary.NativeEndian.AppendUint16(body, kind)
	body = append(body, value...)
	for len(body)%unix.RTA_ALIGNTO != 0 {
		body = append(body, 0)
	}
	return body
}

func word(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// up sets an interface up; struct ifinfomsg: family, pad, type, index, flags,
// change.
func (r *requests) up(name string, mtu int) {
	body := make([]byte, 8, 64)
	body = append(body, word(unix.IFF_UP)...)
	body = append(body, word(unix.IFF_UP)...)
	body = attr(body, unix.IFLA_IFNAME, append([]byte(name), 0))
	if mtu > 0 {
		body = attr(body, unix.IFLA_MTU, word(uint32(mtu)))
	}
	r.add("set "+name+" up", unix.RTM_NEWLINK, 0, body)
}

// down sets an interface down; see up.
func (r *requests) down(index uint32, name string) {
	body := make([]byte, 4, 64)
	body = append(body, word(index)...)
	body = append(body, word(0)...)
	body = append(body, word(unix.IFF_UP)...)
	r.add("set "+name+" down", unix.RTM_NEWLINK, 0, body)
}

// remove deletes an interface that is software.
func (r *requests) remove(index uint32, name string) {
	body := make([]byte, 4, 64)
	body = append(body, word(index)...)
	body = append(body, make([]byte, 8)...)
	r.add("remove "+name, unix.RTM_DELLINK, 0, body)
}

// rename renames an interface, which is found by its index.
func (r *requests) rename(index uint32, name string) {
	body := make([]byte, 4, 64)
	body = append(body, word(index)...)
	body = append(body, make([]byte, 8)...)
	body = attr(body, unix.IFLA_IFNAME, append([]byte(name), 0))
	r.add("name an interface "+name, unix.RTM_NEWLINK, 0, body)
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// address adds an address; struct ifaddrmsg: family, prefix length, flags,
// scope, index.
func (r *requests) address(name string, index uint32, p netip.Prefix) {
	flags := byte(0)
	if p.Addr().Is6() {
		flags = unix.IFA_F_NODAD
	}
	body := []byte{family(p.Addr()), byte(p.Bits()), flags, unix.RT_SCOPE_UNIVERSE}
	body = append(body, word(index)...)
	body = attr(body, unix.IFA_LOCAL, p.Addr().AsSlice())
	body = attr(body, unix.IFA_ADDRESS, p.Addr().AsSlice())
	if p.Addr().Is4() && p.Bits() < 31 {
		a := p.Masked().Addr().As4()
		last := binary.BigEndian.Uint32(a[:]) | (1<<(32-p.Bits()) - 1)
		body = attr(body, unix.IFA_BROADCAST, binary.BigEndian.AppendUint32(nil, last))
	}
	r.add(fmt.Sprintf("add address %s to %s", p, name), unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, body)
}

// gateway adds a default route; struct rtmsg: family, destination and source
// length, tos, table, protocol, scope, type, flags.
func (r *requests) gateway(name string, index uint32, gw netip.Addr) {
	body := []byte{family(gw), 0, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST}
	body = append(body, word(unix.RTNH_F_ONLINK)...)
	body = attr(body, unix.RTA_GATEWAY, gw.AsSlice())
	body = attr(body, unix.RTA_OIF, word(index))
	r.add(fmt.Sprintf("add default route by %s on %s", gw, name), unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, body)
}

// send sends the messages and waits for all acknowledgements.
func (r *requests) send() error {
	if len(r.what) == 0 {
		return nil
	}
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	if err := unix.Sendto(s, r.buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("configure the network: %w", err)
	}
	buf := make([]byte, 16<<10)
	for done := 0; done < len(r.what); {
		n, _, err := unix.Recvfrom(s, buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("configure the network: %w", err)
		}
		k, err := r.acks(buf[:n])
		if err != nil {
			return err
		}
		done += k
	}
	return nil
}

// acks counts the acknowledgements in b; struct nlmsgerr begins with a
// negative errno.
func (r *requests) acks(b []byte) (int, error) {
	n := 0
	for len(b) >= unix.SizeofNlMsghdr {
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.SizeofNlMsghdr || size > len(b) {
			return n, io.ErrUnexpectedEOF
		}
		kind, seq := binary.NativeEndian.Uint16(b[4:]), int(binary.NativeEndian.Uint32(b[8:]))
		if kind == unix.NLMSG_ERROR && size >= unix.SizeofNlMsghdr+4 {
			n++
			if errno := -int32(binary.NativeEndian.Uint32(b[unix.SizeofNlMsghdr:])); errno != 0 {
				what := "configure the network"
				if seq >= 1 && seq <= len(r.what) {
					what = r.what[seq-1]
				}
				return n, fmt.Errorf("%s: %w", what, unix.Errno(errno))
			}
		}
		b = b[min(len(b), (size+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1)):]
	}
	return n, nil
}
