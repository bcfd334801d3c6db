package network

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/network/dns"
)

// A subnet of our choice has room for more guests than a bridge has ports:
// those that are stopped keep their addresses.
const chosenBits = 20

// used is a part of the address space that the host has a use for.
type used struct {
	prefix netip.Prefix
	what   string // like "route 10.0.0.0/8 by tun0"
}

// inUse lists what is in use on the host, other than by the link of index
// except. Default routes don't count.
func (m *Manager) inUse(except int) ([]used, error) {
	var all []used
	names := map[int]string{}
	links, err := m.rt.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	addrs, err := m.rt.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if p := prefixOf(a.IPNet); a.LinkIndex != except && !p.Addr().IsLinkLocalUnicast() {
			all = append(all, used{p.Masked(), fmt.Sprintf("address %s of %s", p, names[a.LinkIndex])})
		}
	}
	anyTable := &netlink.Route{Table: unix.RT_TABLE_UNSPEC}
	routes, err := m.rt.RouteListFiltered(netlink.FAMILY_ALL, anyTable, netlink.RT_FILTER_TABLE)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil || r.LinkIndex == except || r.Type == unix.RTN_BROADCAST || r.Type == unix.RTN_MULTICAST || r.Type == unix.RTN_LOCAL {
			continue
		}
		p := prefixOf(r.Dst)
		if p.Bits() == 0 || p.Addr().IsLinkLocalUnicast() || p.Addr().IsMulticast() {
			continue
		}
		by := names[r.LinkIndex]
		if by == "" {
			by = "no link"
		}
		all = append(all, used{p, fmt.Sprintf("route %s by %s", p, by)})
	}
	return all, nil
}

// resolvers are addresses that guests' names depend on: often behind the
// default route, in no route of their own.
func (m *Manager) resolvers() []used {
	content, err := os.ReadFile(m.resolv)
	if err != nil {
		return nil
	}
	var all []used
	for _, a := range dns.ParseResolvConf(content) {
		a = a.WithZone("")
		all = append(all, used{netip.PrefixFrom(a, a.BitLen()), fmt.Sprintf("name server %s of %s", a, m.resolv)})
	}
	return all
}

// clash finds what a subnet overlaps.
func clash(p netip.Prefix, all []used) (used, bool) {
	for _, u := range all {
		if u.prefix.Overlaps(p) {
			return u, true
		}
	}
	return used{}, false
}

// plan decides the gateway addresses of n: what its spec says, else what its
// status says it has, else what is free. The zero Prefix stands for none.
func (m *Manager) plan(_ context.Context, n *api.Network, index int) (v4, v6 netip.Prefix, err error) {
	all, err := m.inUse(index)
	if err != nil {
		return v4, v6, err
	}
	choose4 := func() (netip.Prefix, error) { return chooseIPv4(append(all, m.resolvers()...)) }
	choose6 := func() (netip.Prefix, error) { return chooseIPv6(append(all, m.resolvers()...)) }
	has, err := m.addresses(index)
	if err != nil {
		return v4, v6, err
	}
	if v4, err = planned("ipv4", n.Spec.IPv4, n.Status.IPv4, all, has, choose4); err != nil {
		return v4, v6, err
	}
	if !m.ipv6 && n.Spec.IPv6 == "" {
		return v4, v6, nil
	}
	if !m.ipv6 && n.Spec.IPv6 != "none" {
		return v4, v6, api.Errorf(api.CodeUnsupported, "network %q: the host's kernel has IPv6 switched off", n.Name).
			WithField("spec.ipv6").WithHint(`boot it without ipv6.disable=1, or say ipv6: "none"`)
	}
	v6, err = planned("ipv6", n.Spec.IPv6, n.Status.IPv6, all, has, choose6)
	return v4, v6, err
}

// addresses are those of the link of that index, none if it is 0.
func (m *Manager) addresses(index int) ([]netip.Prefix, error) {
	if index == 0 {
		return nil, nil
	}
	l, err := m.rt.LinkByIndex(index)
	if err != nil {
		return nil, fmt.Errorf("find link %d: %w", index, err)
	}
	addrs, err := m.rt.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses of %s: %w", l.Attrs().Name, err)
	}
	var all []netip.Prefix
	for _, a := range addrs {
		all = append(all, prefixOf(a.IPNet))
	}
	return all, nil
}

func prefixOf(n *net.IPNet) netip.Prefix {
	ip, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(ip.Unmap(), bits)
}

// planned decides for one family. What the bridge has it keeps, whatever
// came to the host since.
func planned(family, spec, status string, all []used, has []netip.Prefix, choose func() (netip.Prefix, error)) (netip.Prefix, error) {
	var gateway netip.Prefix
	switch {
	case spec == "none":
		return netip.Prefix{}, nil
	case spec != "":
		subnet, err := parseSubnet(family, spec)
		if err != nil {
			return netip.Prefix{}, err
		}
		gateway = netip.PrefixFrom(subnet.Addr().Next(), subnet.Bits())
	case status != "":
		p, err := netip.ParsePrefix(status)
		if err != nil {
			return netip.Prefix{}, fmt.Errorf("read the network's %s address %q: %w", family, status, err)
		}
		gateway = p
	default:
		return choose()
	}
	if u, found := clash(gateway.Masked(), all); found && !slices.Contains(has, gateway) {
		return netip.Prefix{}, api.Errorf(api.CodeConflict, "subnet %s is in use on this host: it overlaps %s", gateway.Masked(), u.what).
			WithField("spec." + family).WithHint("name another subnet, or none to have one chosen")
	}
	return gateway, nil
}

// parseSubnet reads a subnet in which there is room for a gateway and a guest.
func parseSubnet(family, text string) (netip.Prefix, error) {
	invalid := func(why string, args ...any) (netip.Prefix, error) {
		return netip.Prefix{}, api.Errorf(api.CodeInvalid, "subnet %q: %s", text, fmt.Sprintf(why, args...)).WithField("spec." + family)
	}
	p, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		return invalid("not an address with a prefix length, like 10.20.0.0/24")
	case p.Addr().Is4() != (family == "ipv4") || p.Addr().Is4In6():
		return invalid("not of the family %s", family)
	case p.Masked() != p:
		return invalid("the subnet of that length begins at %s", p.Masked())
	case p.Bits() > p.Addr().BitLen()-2:
		return invalid("too small; a gateway and a guest need a prefix length of at most %d", p.Addr().BitLen()-2)
	case p.Addr().IsMulticast() || p.Addr().IsLoopback() || p.Addr().IsUnspecified() || p.Addr().IsLinkLocalUnicast():
		return invalid("not made of addresses for hosts")
	}
	return p, nil
}

// chooseIPv4 takes the first free subnet of the private ranges (RFC 1918),
// beginning where few others do.
func chooseIPv4(all []used) (netip.Prefix, error) {
	var candidates []netip.Prefix
	add := func(a, b byte) {
		for c := 0; c < 256; c += 1 << (24 - chosenBits) {
			candidates = append(candidates, netip.PrefixFrom(netip.AddrFrom4([4]byte{a, b, byte(c), 1}), chosenBits))
		}
	}
	for b := byte(83); b < 128; b++ {
		add(10, b)
	}
	for b := byte(64); b < 83; b++ {
		add(10, b)
	}
	for b := byte(31); b > 17; b-- {
		add(172, b)
	}
	add(192, 168)
	for _, c := range candidates {
		if _, found := clash(c.Masked(), all); !found {
			return c, nil
		}
	}
	return netip.Prefix{}, api.Errorf(api.CodeConflict, "no private IPv4 subnet of 2^%d addresses is free on this host", 32-chosenBits).
		WithField("spec.ipv4").WithHint(`name a smaller one, or say ipv4: "none"`)
}

// chooseIPv6 makes a unique local prefix (RFC 4193 §3.2.2) and takes its
// first subnet.
func chooseIPv6(all []used) (netip.Prefix, error) {
	for range 16 {
		b := [16]byte{0: 0xfd, 15: 1}
		_, _ = rand.Read(b[1:6]) // never fails
		p := netip.PrefixFrom(netip.AddrFrom16(b), 64)
		if _, found := clash(p.Masked(), all); !found {
			return p, nil
		}
	}
	return netip.Prefix{}, api.Errorf(api.CodeConflict, "no unique local IPv6 subnet is free on this host: a route covers them all").
		WithField("spec.ipv6").WithHint(`name one, or say ipv6: "none"`)
}
