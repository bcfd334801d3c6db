package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/network/link"
	"github.com/cleave-project/cleave/network/nft"
)

// addrs are the addresses that the port may send from: its own, and the
// link-local one that IPv6 makes of its MAC (RFC 4291 appendix A).
func (p Port) addrs() []netip.Addr {
	var all []netip.Addr
	if p.IPv4.IsValid() {
		all = append(all, p.IPv4)
	}
	if p.IPv6.IsValid() {
		m := p.MAC
		all = append(all, p.IPv6, netip.AddrFrom16([16]byte{
			0: 0xfe, 1: 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5],
		}))
	}
	return all
}

func (p Port) elements() []nft.Element { return nft.Guest(p.Link, p.MAC, p.addrs()) }

// shaper is the name of the device that limits what the guest sends.
func (p Port) shaper() string { return p.Link + "i" }

// hostMAC is the MAC of the host's end. Nobody speaks to it; it must only
// differ from the guest's. The kernel would draw one.
func (p Port) hostMAC() net.HardwareAddr {
	return append(net.HardwareAddr{0xfe}, p.MAC[1:]...)
}

func (p Port) validate(b *bridge) error {
	invalid := func(format string, args ...any) error {
		return api.Errorf(api.CodeInvalid, "port %s: %s", p.Link, fmt.Sprintf(format, args...))
	}
	switch {
	case p.Link == "" || len(p.Link) > unix.IFNAMSIZ-2:
		return invalid("a link's name has 1 to %d characters", unix.IFNAMSIZ-2)
	case p.Name == "" || len(p.Name) > unix.IFNAMSIZ-1:
		return invalid("interface name %q: 1 to %d characters are allowed", p.Name, unix.IFNAMSIZ-1)
	case len(p.MAC) != 6 || p.MAC[0]&1 != 0 || p.MAC[0] == 0xfe:
		return invalid("MAC %q: not six bytes of one station (fe is the host's)", p.MAC)
	case bytes.Equal(p.MAC, b.mac):
		return invalid("the MAC %s is the gateway's", p.MAC)
	case p.IPv4.IsValid() && !(p.IPv4.Is4() && b.holds(p.IPv4)):
		return invalid("%s is no guest's address of its network", p.IPv4)
	case p.IPv6.IsValid() && !(p.IPv6.Is6() && b.holds(p.IPv6)):
		return invalid("%s is no guest's address of its network", p.IPv6)
	case p.MTU < 0 || p.MTU > b.mtu:
		return invalid("mtu %d: the network's is %d", p.MTU, b.mtu)
	case p.In < 0 || p.Out < 0:
		return invalid("a rate can't be negative")
	}
	return nil
}

// bridgeOf finds the bridge of a port's network.
func (m *Manager) bridgeOf(p Port) (*bridge, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.networks[p.Network]
	if b == nil {
		return nil, api.Errorf(api.CodeNotFound, "port %s: network %s isn't on this host", p.Link, p.Network)
	}
	return b, nil
}

// Attach makes p, with its inner end, down and without addresses, in the
// network namespace of pid. It replaces a port of the same link name. When
// it fails nothing is left.
func (m *Manager) Attach(ctx context.Context, p Port, pid int) error {
	return m.attach(ctx, p, func(b *bridge) (int, error) { return m.plug(b, p, pid) })
}

// attach lets p through the tables and makes its link by plug.
func (m *Manager) attach(ctx context.Context, p Port, plug func(*bridge) (int, error)) error {
	b, err := m.bridgeOf(p)
	if err != nil {
		return err
	}
	if err := p.validate(b); err != nil {
		return err
	}
	if err := m.admit(p); err != nil {
		return err
	}
	index, err := plug(b)
	if err != nil {
		return errors.Join(err, m.Detach(ctx, p), m.rt.Delete(p.Link), m.rt.Delete(p.shaper()))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if live := m.ports[p.Link]; live != nil {
		live.index = index
	}
	return nil
}

// distinct is a conflict when another port has p's MAC or one of its
// addresses: either would take the other's packets. m.mu is held.
func (m *Manager) distinct(p Port) error {
	for _, other := range m.ports {
		if other.Link == p.Link || other.Network != p.Network {
			continue
		}
		if bytes.Equal(other.MAC, p.MAC) {
			return api.Errorf(api.CodeConflict, "port %s: instance %s has the MAC %s", p.Link, other.Instance, p.MAC)
		}
		if p.IPv4.IsValid() && p.IPv4 == other.IPv4 || p.IPv6.IsValid() && p.IPv6 == other.IPv6 {
			return api.Errorf(api.CodeConflict, "port %s: instance %s has its address (%s, %s)", p.Link, other.Instance, other.IPv4, other.IPv6)
		}
	}
	return nil
}

// admit lets the port's addresses through the tables.
func (m *Manager) admit(p Port) error {
	m.compiled.RLock()
	defer m.compiled.RUnlock()
	m.mu.Lock()
	if err := m.distinct(p); err != nil {
		m.mu.Unlock()
		return err
	}
	old := m.ports[p.Link]
	m.ports[p.Link] = &port{Port: p}
	delete(m.leaving, p.Link)
	delete(m.leaving, p.shaper())
	m.mu.Unlock()
	var before []nft.Element
	if old != nil {
		before = old.elements()
	}
	after := p.elements()
	return m.tables.Apply(without(after, before), without(before, after))
}

// plug makes the links and tells the bridge where to find the guest.
func (m *Manager) plug(b *bridge, p Port, pid int) (int, error) {
	v := link.Veth{
		Name: p.Link, MAC: p.hostMAC(), Group: m.groups.ports, Bridge: b.index, MTU: p.MTU, IPv6: m.ipv6,
		Peer: p.Name, PeerMAC: p.MAC, PID: pid,
	}
	if v.MTU == 0 {
		v.MTU = b.mtu
	}
	index, err := m.rt.AddVeth(v)
	if errors.Is(err, unix.EEXIST) {
		// What an earlier guest of that id left.
		if err := m.rt.Delete(p.Link); err != nil {
			return 0, err
		}
		index, err = m.rt.AddVeth(v)
	}
	if errors.Is(err, unix.EEXIST) {
		return 0, api.Errorf(api.CodeConflict, "port %s: the guest has an interface %s already: %w", p.Link, p.Name, err)
	}
	if err != nil {
		return 0, roomless(b, err)
	}
	return index, m.connect(b, p, index)
}

// roomless explains an error when a bridge has too many ports.
func roomless(b *bridge, err error) error {
	if errors.Is(err, unix.EXFULL) || errors.Is(err, unix.ENOSPC) {
		return api.Errorf(api.CodeNoResources, "bridge %s has no room for another port: %w", b.name, err).
			WithHint("a bridge has 1023; put further guests on another network")
	}
	return err
}

// connect makes the new link the port that it is to be.
func (m *Manager) connect(b *bridge, p Port, index int) error {
	if err := m.introduce(b, p, index); err != nil {
		return err
	}
	return m.limit(index, Port{Link: p.Link}, p)
}

// introduce makes entries that need not be learned, and that nobody can make
// the bridge or the host forget: neither floods a port in search of a guest.
func (m *Manager) introduce(b *bridge, p Port, index int) error {
	err := m.rt.NeighSet(&netlink.Neigh{
		LinkIndex: index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_MASTER,
		State: netlink.NUD_NOARP, HardwareAddr: p.MAC,
	})
	if err != nil {
		return fmt.Errorf("forward %s to link %s: %w", p.MAC, p.Link, err)
	}
	for _, n := range p.neighbours(b) {
		if err := m.rt.NeighSet(n); err != nil {
			return fmt.Errorf("make neighbour %s of %s: %w", n.IP, b.name, err)
		}
	}
	return nil
}

// neighbours are the guest's addresses as the host's own stack finds them.
func (p Port) neighbours(b *bridge) []*netlink.Neigh {
	var all []*netlink.Neigh
	for _, a := range []netip.Addr{p.IPv4, p.IPv6} {
		if a.IsValid() {
			all = append(all, &netlink.Neigh{
				LinkIndex: b.index, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: p.MAC,
			})
		}
	}
	return all
}

// leaveTime is how long a link may outlive its port: the kernel removes it
// with the guest's network namespace, in its own time. Deleting it would
// take 17 ms of waiting, during which no other link can be made.
const leaveTime = 3 * time.Second

// Detach takes p away, after its guest has ended. From then on it passes
// nothing; the link itself goes with the guest's namespace, or soon after.
// It is no error when there is no such port.
func (m *Manager) Detach(_ context.Context, p Port) error {
	m.compiled.RLock()
	defer m.compiled.RUnlock()
	m.mu.Lock()
	index := 0 // any: a port of another daemon's life
	if live := m.ports[p.Link]; live != nil {
		p, index = live.Port, live.index
	}
	delete(m.ports, p.Link)
	m.leaving[p.Link], m.leaving[p.shaper()] = index, 0
	b := m.networks[p.Network]
	m.mu.Unlock()
	notify(m.reap)
	var errs []error
	if b != nil {
		for _, n := range p.neighbours(b) {
			if err := m.rt.NeighDel(n); err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, fmt.Errorf("remove neighbour %s of %s: %w", n.IP, b.name, err))
			}
		}
	}
	return errors.Join(append(errs, m.tables.Apply(nil, p.elements()))...)
}

// reaper deletes links that should have gone by themselves, some time after
// it was told of them, until ctx ends.
func (m *Manager) reaper(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.reap:
		}
		if !pause(ctx, leaveTime) {
			return
		}
		m.mu.Lock()
		leaving := m.leaving
		m.leaving = map[string]int{}
		m.mu.Unlock()
		for name, index := range leaving {
			if err := m.dismiss(name, index); err != nil {
				m.log.Error("network: remove what a guest left", "link", name, "error", err)
			}
		}
	}
}

// dismiss deletes a link unless a new one has its name.
func (m *Manager) dismiss(name string, index int) error {
	now, err := m.rt.Index(name)
	if err != nil || index != 0 && now != index {
		return nil
	}
	m.mu.Lock()
	_, again := m.ports[name]
	if !again {
		_, again = m.ports[name[:len(name)-1]] // its shaper
	}
	m.mu.Unlock()
	if again {
		return nil
	}
	return m.rt.Delete(name)
}
