package network

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"

	"github.com/vishvananda/netlink"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/network/dhcp"
	"github.com/cleave-project/cleave/network/dns"
)

const defaultMTU = 1500

// domainName is a name of labels (RFC 1123 §2.1).
var domainName = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$`)

func domain(n *api.Network) string {
	if n.Spec.Domain == "" {
		return "cleave"
	}
	return n.Spec.Domain
}

// Ensure makes n real, or finds that it is, and returns its status for
// keeping. Subnets that the spec leaves open are chosen once: those in
// n.Status stay. A subnet that something else on the host uses is a conflict.
func (m *Manager) Ensure(ctx context.Context, n *api.Network) (api.NetworkStatus, error) {
	m.setup.Lock()
	defer m.setup.Unlock()
	status := n.Status
	b, err := m.describe(n)
	if err != nil {
		return status, err
	}
	// Two daemons of one host must not choose the same subnet.
	unlock, err := m.ledger.lock()
	if err != nil {
		return status, err
	}
	defer unlock()
	if old, err := m.findBridge(b.name); err != nil {
		return status, err
	} else if old != nil {
		b.index = old.Attrs().Index
	}
	v4, v6, err := m.plan(ctx, n, b.index)
	if err != nil {
		return status, err
	}
	for _, g := range []netip.Prefix{v4, v6} {
		if g.IsValid() {
			b.gateways = append(b.gateways, g)
		}
	}
	if v6.IsValid() && b.mtu < 1280 {
		return status, api.Errorf(api.CodeInvalid, "mtu %d: IPv6 needs at least 1280 (RFC 8200 §5)", b.mtu).
			WithField("spec.mtu").WithHint(`or say ipv6: "none"`)
	}
	if err := m.realize(ctx, n.ID, b); err != nil {
		return status, err
	}
	status.Bridge, status.IPv4, status.IPv6 = b.name, "", ""
	if v4.IsValid() {
		status.IPv4 = v4.String()
	}
	if v6.IsValid() {
		status.IPv6 = v6.String()
	}
	status.State = "ready"
	if err := m.serveNames(n, b); err != nil {
		m.log.Error("network: names don't resolve", "network", n.Name, "error", err)
		status.State = "ready, but names don't resolve: " + err.Error()
	}
	if err := m.serveLeases(n, b); err != nil {
		m.log.Error("network: no DHCP", "network", n.Name, "error", err)
		status.State = "ready, but without DHCP: " + err.Error()
	}
	return status, nil
}

// describe checks what of the spec doesn't depend on the host.
func (m *Manager) describe(n *api.Network) (*bridge, error) {
	b := &bridge{
		name: bridgeName(m.scope, n), mac: bridgeMAC(m.scope, n.ID), mtu: n.Spec.MTU,
		nat: n.Spec.NAT == nil || *n.Spec.NAT,
	}
	if b.mtu == 0 {
		b.mtu = defaultMTU
	}
	if b.mtu < 576 || b.mtu > 65535 {
		return nil, api.Errorf(api.CodeInvalid, "mtu %d: not from 576 to 65535", b.mtu).WithField("spec.mtu")
	}
	if d := domain(n); len(d) > 200 || !domainName.MatchString(d) {
		return nil, api.Errorf(api.CodeInvalid, "domain %q: not a name of lower-case letters, digits and hyphens", d).WithField("spec.domain")
	}
	return b, nil
}

// realize changes the host. What fails midway is found and finished by the
// next call.
func (m *Manager) realize(ctx context.Context, id string, b *bridge) error {
	if err := m.hostSysctls(); err != nil {
		return err
	}
	m.compiled.Lock()
	err := m.addElements(id, b)
	m.compiled.Unlock()
	if err != nil {
		return err
	}
	if err := m.makeBridge(ctx, b, id); err != nil {
		m.mu.Lock()
		if n := m.networks[id]; n != nil && n.index == 0 {
			delete(m.networks, id)
		}
		m.mu.Unlock()
		return err
	}
	m.mu.Lock()
	m.networks[id] = b
	bridges := m.bridgeNames()
	m.mu.Unlock()
	return m.openDoors(bridges)
}

// addElements puts the network's elements into the tables, before there is
// anything that they apply to. m.compiled is held.
func (m *Manager) addElements(id string, b *bridge) error {
	present, err := m.tables.Present()
	if err != nil {
		return unsupported(err)
	}
	m.mu.Lock()
	old, first := m.networks[id], len(m.networks) == 0
	m.networks[id] = b
	m.mu.Unlock()
	if !present || first {
		if err := m.tables.Load(); err != nil {
			return unsupported(err)
		}
	}
	if !present {
		_, err = m.tables.Reconcile(m.elements())
		return err
	}
	want := b.elements()
	if old == nil {
		return m.tables.Apply(want, nil)
	}
	return m.tables.Apply(want, without(old.elements(), want))
}

// unsupported explains what a packet filter that can't do its part means.
func unsupported(err error) error {
	return api.Errorf(api.CodeUnsupported, "the kernel's packet filter can't separate guests: %w", err).
		WithHint("it needs nf_tables with the families inet and bridge, and nft_fib, nft_nat and nft_limit; cleave doctor tells more")
}

func without[E comparable](all, others []E) []E {
	gone := map[E]bool{}
	for _, e := range others {
		gone[e] = true
	}
	var rest []E
	for _, e := range all {
		if !gone[e] {
			rest = append(rest, e)
		}
	}
	return rest
}

func (m *Manager) serveNames(n *api.Network, b *bridge) error {
	zone := dns.Zone{ID: n.ID, Domain: domain(n)}
	for _, g := range b.gateways {
		zone.Gateways = append(zone.Gateways, g.Addr())
		zone.Subnets = append(zone.Subnets, g.Masked())
	}
	return m.names.Serve(zone)
}

// serveLeases tells guests their addresses that ask for them.
func (m *Manager) serveLeases(n *api.Network, b *bridge) error {
	for _, g := range b.gateways {
		if g.Addr().Is4() {
			return m.leases.Serve(dhcp.Network{ID: n.ID, Index: b.index, Gateway: g, Domain: domain(n)})
		}
	}
	m.leases.Stop(n.ID)
	return nil
}

// lease is what the station of a port is told.
func (m *Manager) lease(network string, mac net.HardwareAddr) (dhcp.Lease, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.networks[network]
	for _, p := range m.ports {
		if b != nil && p.Network == network && bytes.Equal(p.MAC, mac) && p.IPv4.IsValid() {
			return dhcp.Lease{Addr: p.IPv4, Hostname: p.Hostname, MTU: cmp.Or(p.MTU, b.mtu)}, true
		}
	}
	return dhcp.Lease{}, false
}

// Remove takes a network away; it is no error when there is none.
func (m *Manager) Remove(_ context.Context, id string) error {
	m.setup.Lock()
	defer m.setup.Unlock()
	m.mu.Lock()
	b := m.networks[id]
	for _, p := range m.ports {
		if p.Network == id {
			m.mu.Unlock()
			return api.Errorf(api.CodeInUse, "network %s: instance %s has a port on it", id, p.Instance)
		}
	}
	delete(m.networks, id)
	bridges := m.bridgeNames()
	m.mu.Unlock()
	m.names.Stop(id)
	m.leases.Stop(id)
	if b != nil {
		m.compiled.RLock()
		err := m.tables.Apply(nil, b.elements())
		m.compiled.RUnlock()
		if err != nil {
			return err
		}
	}
	return errors.Join(m.closeDoors(bridges), m.deleteBridges(func(a *netlink.LinkAttrs) bool { return a.Alias == alias(id) }))
}

// deleteBridges deletes those bridges of the scope that match.
func (m *Manager) deleteBridges(match func(*netlink.LinkAttrs) bool) error {
	links, err := m.rt.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list links: %w", err)
	}
	var errs []error
	for _, l := range links {
		if a := l.Attrs(); l.Type() == "bridge" && a.Group == m.groups.bridges && match(a) {
			errs = append(errs, m.rt.Delete(a.Name))
		}
	}
	return errors.Join(errs...)
}
