package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/network/nft"
)

// heldForward is a forward whose port on the host is reserved.
type heldForward struct {
	Forward
	reservation
}

func (f Forward) String() string {
	return fmt.Sprintf("port %s/%s", f.hostPort(), f.Protocol)
}

func (f Forward) hostPort() string {
	if !f.HostIP.IsValid() {
		return strconv.Itoa(int(f.HostPort))
	}
	return netip.AddrPortFrom(f.HostIP, f.HostPort).String()
}

func (f Forward) number() byte {
	if f.Protocol == "udp" {
		return nft.UDP
	}
	return nft.TCP
}

// targets are the guest's addresses that the forward leads to: those of the
// families that the host's end has.
func (f Forward) targets() []netip.Addr {
	var all []netip.Addr
	if f.GuestIP4.IsValid() && (!f.HostIP.IsValid() || f.HostIP.Is4()) {
		all = append(all, f.GuestIP4)
	}
	if f.GuestIP6.IsValid() && (!f.HostIP.IsValid() || f.HostIP.Is6()) {
		all = append(all, f.GuestIP6)
	}
	return all
}

func (f Forward) elements() []nft.Element {
	var e []nft.Element
	for _, guest := range f.targets() {
		e = append(e, nft.Forward(f.HostIP, f.number(), f.HostPort, guest, f.GuestPort))
	}
	return e
}

// Overlaps tells whether two forwards want the same port of some address.
func (f Forward) Overlaps(g Forward) bool {
	if f.HostPort != g.HostPort || f.Protocol != g.Protocol {
		return false
	}
	if !f.HostIP.IsValid() || !g.HostIP.IsValid() {
		return true
	}
	return f.HostIP == g.HostIP ||
		f.HostIP.Is4() == g.HostIP.Is4() && (f.HostIP.IsUnspecified() || g.HostIP.IsUnspecified())
}

func (f Forward) validate() error {
	invalid := func(why string) error {
		return api.Errorf(api.CodeInvalid, "publish %s: %s", f, why).WithField("spec.publish")
	}
	switch {
	case f.Protocol != "tcp" && f.Protocol != "udp":
		return invalid("the protocol is neither tcp nor udp")
	case f.HostPort == 0 || f.GuestPort == 0:
		return invalid("a port is a number from 1 to 65535")
	case f.HostIP.Is4In6() || f.HostIP.Zone() != "" || f.HostIP == netip.IPv6Loopback():
		return invalid("on that address no port can be published")
	case len(f.targets()) == 0:
		return invalid("the guest has no address of that family")
	}
	return nil
}

// SetForwards replaces the forwards of an instance; nil removes them. When a
// port is taken, by another forward or by a program of the host, it is a
// conflict that says by whom, and nothing is changed.
func (m *Manager) SetForwards(_ context.Context, instance string, forwards []Forward) error {
	m.mu.Lock()
	old := m.forwards[instance]
	m.mu.Unlock()
	for i, f := range forwards {
		if err := f.validate(); err != nil {
			return err
		}
		for _, g := range forwards[:i] {
			if f.Overlaps(g) {
				return api.Errorf(api.CodeInvalid, "publish %s: it is published twice", f).WithField("spec.publish")
			}
		}
	}
	held, fresh, err := m.reserve(instance, forwards, old)
	if err != nil {
		return err
	}

	m.compiled.RLock()
	m.mu.Lock()
	m.forwards[instance] = held
	if len(held) == 0 {
		delete(m.forwards, instance)
	}
	m.mu.Unlock()
	before, after := elementsOf(old), elementsOf(held)
	err = m.tables.Apply(without(after, before), without(before, after))
	if err != nil {
		m.mu.Lock()
		m.forwards[instance] = old
		m.mu.Unlock()
	}
	m.compiled.RUnlock()
	if err != nil {
		for _, h := range fresh {
			h.release()
		}
		return err
	}
	for _, h := range old {
		if !keeps(held, h) {
			h.release()
		}
	}
	return m.forgetFlows(old, held)
}

func elementsOf(held []heldForward) []nft.Element {
	var all []nft.Element
	for _, h := range held {
		all = append(all, h.elements()...)
	}
	return all
}

// sameHostEnd tells whether one reservation serves both.
func (f Forward) sameHostEnd(g Forward) bool {
	return f.HostIP == g.HostIP && f.HostPort == g.HostPort && f.Protocol == g.Protocol && len(f.targets()) == len(g.targets())
}

func keeps(held []heldForward, h heldForward) bool {
	for _, g := range held {
		if g.sameHostEnd(h.Forward) {
			return true
		}
	}
	return false
}

// reserve holds the ports of forwards: those in old with what already holds
// them, the others, which it also returns apart, anew.
func (m *Manager) reserve(instance string, forwards []Forward, old []heldForward) (held, fresh []heldForward, err error) {
	for _, f := range forwards {
		if i := indexHostEnd(old, f); i >= 0 {
			held = append(held, heldForward{f, old[i].reservation})
			continue
		}
		err := m.heldByOther(instance, f)
		var r reservation
		if err == nil {
			r, err = reservePort(f)
		}
		if err != nil {
			for _, h := range fresh {
				h.release()
			}
			return nil, nil, err
		}
		h := heldForward{f, r}
		held, fresh = append(held, h), append(fresh, h)
	}
	return held, fresh, nil
}

func indexHostEnd(held []heldForward, f Forward) int {
	for i, h := range held {
		if h.sameHostEnd(f) {
			return i
		}
	}
	return -1
}

// heldByOther is a conflict if another instance has a port that f wants.
func (m *Manager) heldByOther(instance string, f Forward) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for other, held := range m.forwards {
		for _, h := range held {
			if other != instance && h.Overlaps(f) {
				return api.Errorf(api.CodeConflict, "publish %s: instance %s has it (as %s)", f, other, h.hostPort()).
					WithField("spec.publish").WithHint("choose another port of the host")
			}
		}
	}
	return nil
}

// forgetFlows drops what connection tracking knows of datagrams to ports
// that lead elsewhere now: a client that keeps sending would otherwise be
// sent to where they led before for as long as it does. Connections of TCP
// end by themselves.
func (m *Manager) forgetFlows(old, held []heldForward) error {
	ports := map[uint16]bool{}
	for _, side := range [][]Forward{without(plain(old), plain(held)), without(plain(held), plain(old))} {
		for _, f := range side {
			if f.Protocol == "udp" {
				ports[f.HostPort] = true
			}
		}
	}
	var filters []netlink.CustomConntrackFilter
	for p := range ports {
		filter := &netlink.ConntrackFilter{}
		err := errors.Join(filter.AddProtocol(unix.IPPROTO_UDP), filter.AddPort(netlink.ConntrackOrigDstPort, p))
		if err != nil {
			return err
		}
		filters = append(filters, filter)
	}
	if len(filters) == 0 {
		return nil
	}
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		if _, err := m.rt.ConntrackDeleteFilters(netlink.ConntrackTable, family, filters...); err != nil {
			return fmt.Errorf("forget tracked datagrams: %w", err)
		}
	}
	return nil
}

func plain(held []heldForward) []Forward {
	all := make([]Forward, len(held))
	for i, h := range held {
		all[i] = h.Forward
	}
	return all
}
