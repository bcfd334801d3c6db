package network

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/network/nft"
)

// bridge is a network that exists.
type bridge struct {
	name     string
	index    int
	mac      net.HardwareAddr
	mtu      int
	nat      bool
	gateways []netip.Prefix // of each family at most one
}

func (b *bridge) elements() []nft.Element {
	var addrs []netip.Addr
	for _, g := range b.gateways {
		addrs = append(addrs, g.Addr())
	}
	return nft.Network(b.name, b.mac, addrs, b.nat)
}

// holds tells whether a guest on the bridge may have the address.
func (b *bridge) holds(a netip.Addr) bool {
	for _, g := range b.gateways {
		if g.Contains(a) && g.Addr() != a {
			return true
		}
	}
	return false
}

// bridgeName is short for the network that people meet first, and otherwise
// made of the network's id: 15 characters are all that the kernel has.
func bridgeName(scope string, n *api.Network) string {
	isDefault := n.Name == "default" && (n.Project == "" || n.Project == api.DefaultProject)
	switch {
	case n.Status.Bridge != "":
		return n.Status.Bridge
	case isDefault && scope == "":
		return "cleave0"
	case isDefault:
		return "clv" + scope + "n0"
	}
	sum := sha256.Sum256([]byte(n.ID))
	return "clv" + scope + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:])[:6])
}

// bridgeMAC is locally administered and always the same: else the bridge
// would take the lowest of its ports', and guests would lose their gateway
// when that port goes.
func bridgeMAC(scope, id string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(nft.TableName(scope) + "/" + id))
	return append(net.HardwareAddr{0x02}, sum[:5]...)
}

// alias is how a bridge says whose it is.
func alias(id string) string { return "cleave network " + id }

// findBridge returns the scope's link of that name, or nil if there is none.
func (m *Manager) findBridge(name string) (netlink.Link, error) {
	l, err := m.rt.LinkByName(name)
	var missing netlink.LinkNotFoundError
	switch {
	case errors.As(err, &missing):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("find link %s: %w", name, err)
	case l.Type() != "bridge" || l.Attrs().Group != m.groups.bridges:
		return nil, api.Errorf(api.CodeConflict, "the host has a link %s that isn't a bridge of this daemon", name).
			WithHint("rename or remove it")
	}
	return l, nil
}

// makeBridge makes the bridge or brings the one that exists to what b says.
func (m *Manager) makeBridge(_ context.Context, b *bridge, id string) error {
	l, err := m.findBridge(b.name)
	if err != nil {
		return err
	}
	if l == nil {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.HardwareAddr, attrs.Group = b.name, b.mtu, b.mac, m.groups.bridges
		snooping := false // without a querier it floods anyway; with one, a guest could be it
		if err := m.rt.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}); err != nil {
			return fmt.Errorf("make bridge %s: %w", b.name, err)
		}
		if l, err = m.findBridge(b.name); err != nil || l == nil {
			return errors.Join(fmt.Errorf("bridge %s is gone as soon as it was made", b.name), err)
		}
	}
	b.index = l.Attrs().Index
	wrap := func(err error) error {
		if err != nil {
			return fmt.Errorf("set up bridge %s: %w", b.name, err)
		}
		return nil
	}
	if l.Attrs().Alias != alias(id) {
		if err := m.rt.LinkSetAlias(l, alias(id)); err != nil {
			return wrap(err)
		}
	}
	if l.Attrs().MTU != b.mtu {
		if err := m.rt.LinkSetMTU(l, b.mtu); err != nil {
			return wrap(err)
		}
	}
	if err := m.bridgeSysctls(b); err != nil {
		return wrap(err)
	}
	if err := m.rt.LinkSetUp(l); err != nil {
		return wrap(err)
	}
	return wrap(m.setAddresses(l, b.gateways))
}

// bridgeSysctls prepare the bridge's own settings, which go with it.
func (m *Manager) bridgeSysctls(b *bridge) error {
	settings := []setting{
		{"net/ipv4/conf/" + b.name + "/route_localnet", "1"}, // published ports on 127.0.0.1
		{"net/ipv4/conf/" + b.name + "/send_redirects", "0"}, // guests can't use another way
		{"net/ipv4/conf/" + b.name + "/accept_redirects", "0"},
	}
	if m.ipv6 {
		settings = append(settings,
			setting{"net/ipv6/conf/" + b.name + "/disable_ipv6", "0"},
			setting{"net/ipv6/conf/" + b.name + "/accept_ra", "0"},
			setting{"net/ipv6/conf/" + b.name + "/autoconf", "0"},
			setting{"net/ipv6/conf/" + b.name + "/accept_redirects", "0"},
			// Nobody else can have our address; waiting a second to find
			// that out would delay the first guest.
			setting{"net/ipv6/conf/" + b.name + "/accept_dad", "0"},
			setting{"net/ipv6/conf/" + b.name + "/dad_transmits", "0"},
		)
	}
	for _, s := range settings {
		if err := writeSysctl(s.key, s.value); err != nil {
			return err
		}
	}
	return nil
}

// setAddresses gives the link these addresses and takes away others.
func (m *Manager) setAddresses(l netlink.Link, want []netip.Prefix) error {
	have, err := m.addresses(l.Attrs().Index)
	if err != nil {
		return err
	}
	for _, p := range without(have, want) {
		if p.Addr().IsLinkLocalUnicast() {
			continue
		}
		if err := m.rt.AddrDel(l, asAddr(p)); err != nil {
			return fmt.Errorf("remove address %s: %w", p, err)
		}
	}
	for _, w := range without(want, have) {
		a := asAddr(w)
		if w.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := m.rt.AddrAdd(l, a); err != nil {
			return fmt.Errorf("add address %s: %w", w, err)
		}
	}
	return nil
}

func asAddr(p netip.Prefix) *netlink.Addr {
	return &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
}
