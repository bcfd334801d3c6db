package network

import (
	"math/big"
	"net/netip"
	"strings"

	"github.com/cleave-project/cleave/api"
)

// Gateway is n's own address in each family, the zero Addr for none.
func (m *Manager) Gateway(n *api.Network) (v4, v6 netip.Addr) {
	p4, p6 := gateways(n)
	return p4.Addr(), p6.Addr()
}

func gateways(n *api.Network) (v4, v6 netip.Prefix) {
	v4, _ = netip.ParsePrefix(n.Status.IPv4) // empty for none
	v6, _ = netip.ParsePrefix(n.Status.IPv6)
	return v4, v6
}

// ResolvConf is what guests of n have in /etc/resolv.conf.
func ResolvConf(n *api.Network) string {
	var b strings.Builder
	v4, v6 := gateways(n)
	for _, g := range []netip.Prefix{v4, v6} {
		if g.IsValid() {
			b.WriteString("nameserver " + g.Addr().String() + "\n")
		}
	}
	if b.Len() > 0 {
		b.WriteString("search " + domain(n) + "\n")
	}
	return b.String()
}

// Allocate chooses addresses for a new port of n, with the subnet's prefix
// length; the zero Prefix stands for a family that n doesn't have. used
// tells which addresses are taken; the caller keeps others from allocating
// until it has noted the result. An address that has just been freed is not
// given out again while there are others. The IPv6 address ends like the
// IPv4 address where that is free, so that people can tell who is who.
func (m *Manager) Allocate(n *api.Network, used func(netip.Addr) bool, fixed4, fixed6 string) (v4, v6 netip.Prefix, err error) {
	p4, p6 := gateways(n)
	var host uint64
	if v4, err = m.pick(n, "ipv4", p4, used, fixed4, 0); err != nil {
		return netip.Prefix{}, netip.Prefix{}, err
	}
	if v4.IsValid() {
		host = hostNumber(v4)
	}
	if v6, err = m.pick(n, "ipv6", p6, used, fixed6, host); err != nil {
		return netip.Prefix{}, netip.Prefix{}, err
	}
	return v4, v6, nil
}

// pick chooses from one family; prefer is a host number to try first.
func (m *Manager) pick(n *api.Network, family string, gateway netip.Prefix, used func(netip.Addr) bool, fixed string, prefer uint64) (netip.Prefix, error) {
	if fixed != "" {
		return pickFixed(n, family, gateway, used, fixed)
	}
	if !gateway.IsValid() {
		return netip.Prefix{}, nil
	}
	free := func(host uint64) (netip.Prefix, bool) {
		a := hostAddr(gateway, host)
		return netip.PrefixFrom(a, gateway.Bits()), a != gateway.Addr() && !used(a)
	}
	count := hostCount(gateway)
	if prefer > 0 && prefer <= count {
		if p, ok := free(prefer); ok {
			return p, nil
		}
	}
	at := cursor{n.ID, family}
	m.mu.Lock()
	last := m.cursors[at]
	m.mu.Unlock()
	for i := range count {
		host := (last+i)%count + 1
		if p, ok := free(host); ok {
			m.mu.Lock()
			m.cursors[at] = host
			m.mu.Unlock()
			return p, nil
		}
	}
	return netip.Prefix{}, api.Errorf(api.CodeNoResources, "network %q: no address of %s is free", n.Name, gateway.Masked()).
		WithHint("delete instances that hold one, or make another network")
}

func pickFixed(n *api.Network, family string, gateway netip.Prefix, used func(netip.Addr) bool, fixed string) (netip.Prefix, error) {
	fail := func(code api.Code, why string) (netip.Prefix, error) {
		return netip.Prefix{}, api.Errorf(code, "address %q on network %q: %s", fixed, n.Name, why).WithField(family)
	}
	a, err := netip.ParseAddr(fixed)
	switch {
	case err != nil || a.Is4() != (family == "ipv4") || a.Is4In6():
		return fail(api.CodeInvalid, "not an address of the family "+family)
	case !gateway.IsValid():
		return fail(api.CodeInvalid, "the network has no "+family)
	case !gateway.Contains(a):
		return fail(api.CodeInvalid, "not in the network's subnet "+gateway.Masked().String())
	case a == gateway.Addr():
		return fail(api.CodeInvalid, "it is the gateway's")
	}
	p := netip.PrefixFrom(a, gateway.Bits())
	if host := hostNumber(p); host == 0 || a.Is4() && host > hostCount(gateway) {
		return fail(api.CodeInvalid, "it is not a host's")
	}
	if used(a) {
		return fail(api.CodeConflict, "another port has it")
	}
	return p, nil
}

// hostCount is how many hosts a subnet has room for, the gateway included;
// they have the numbers from 1. All-zeros is the subnet's own address
// (RFC 4291 §2.6.1: that of any router) and, in IPv4, all-ones broadcast. Of
// a large subnet only the first 2^32 are used.
func hostCount(p netip.Prefix) uint64 {
	bits := min(p.Addr().BitLen()-p.Bits(), 32)
	if p.Addr().Is4() {
		return 1<<bits - 2
	}
	return 1<<bits - 1
}

// hostAddr is the address of a host of p's subnet, by its number.
func hostAddr(p netip.Prefix, host uint64) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	sum := new(big.Int).Add(new(big.Int).SetBytes(b), new(big.Int).SetUint64(host))
	a, _ := netip.AddrFromSlice(sum.FillBytes(b))
	return a
}

// hostNumber is the number of an address in its subnet, as far as it fits.
func hostNumber(p netip.Prefix) uint64 {
	a, base := p.Addr().AsSlice(), p.Masked().Addr().AsSlice()
	diff := new(big.Int).Sub(new(big.Int).SetBytes(a), new(big.Int).SetBytes(base))
	if !diff.IsUint64() {
		return ^uint64(0)
	}
	return diff.Uint64()
}
