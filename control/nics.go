package control

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/cleave-project/cleave/api"
)

// A port is what came of a NIC of the spec: name, MAC and addresses, which it
// keeps. The spec names only what the user cares about, so that which port is
// whose is found by what fits.

// nicName is the interface name of a NIC: eth and its number, where the spec
// says none.
func nicName(n api.NIC, i int) string { return cmp.Or(n.Name, fmt.Sprintf("eth%d", i)) }

// fits tells whether a port is what a NIC of the spec asks for.
func fits(n api.NIC, p api.Port) bool {
	same := func(asked, has string) bool {
		a, err := netip.ParseAddr(asked)
		return asked == "" || err == nil && sameAddr(has, a)
	}
	return cmp.Or(n.Network, defaultNetwork) == p.Network &&
		(n.Name == "" || n.Name == p.Name) && (n.MAC == "" || strings.EqualFold(n.MAC, p.MAC)) &&
		same(n.IPv4, p.IPv4) && same(n.IPv6, p.IPv6)
}

// matched says which of the ports each NIC has; -1 for none. Who is named
// comes first, then who has the name that his place gives him.
func matched(nics []api.NIC, ports []api.Port) []int {
	of := slices.Repeat([]int{-1}, len(nics))
	taken := make([]bool, len(ports))
	for _, sure := range []func(n api.NIC, i int, p api.Port) bool{
		func(n api.NIC, _ int, _ api.Port) bool { return n.Name != "" },
		func(n api.NIC, i int, p api.Port) bool { return nicName(n, i) == p.Name },
		func(api.NIC, int, api.Port) bool { return true },
	} {
		for i, n := range nics {
			for k, p := range ports {
				if of[i] < 0 && !taken[k] && fits(n, p) && sure(n, i, p) {
					of[i], taken[k] = k, true
				}
			}
		}
	}
	return of
}

// index finds a port by its name, which no other of an instance has.
func index(ports []api.Port, name string) int {
	return slices.IndexFunc(ports, func(p api.Port) bool { return p.Name == name })
}

// slot is the number of an instance's port, from 0.
func slot(ports []api.Port, i int) int {
	if n := ports[i].Slot; n > 0 {
		return n - 1
	}
	return i // of a record from before they had one
}

// slotted are ports that know their numbers.
func slotted(ports []api.Port) []api.Port {
	l := slices.Clone(ports)
	for i := range l {
		l[i].Slot = slot(ports, i) + 1
	}
	return l
}

// portsFor are the ports that an instance is to have by its spec, in that
// order: those that it has, and new ones, with addresses that nobody has. Of a
// live guest those that it is to have no more are there until they are taken
// away. The caller holds the allocator's lock.
func (c *Controller) portsFor(in *api.Instance, have []api.Port, live bool) ([]api.Port, error) {
	nics := nicsOf(in.Spec)
	have = slotted(have)
	of := matched(nics, have)
	ports := make([]api.Port, len(nics))
	var all []api.Port // whose names, numbers and addresses are taken
	for i := range nics {
		if of[i] >= 0 {
			ports[i] = have[of[i]]
			all = append(all, ports[i])
		}
	}
	if live {
		all = slices.Clone(have)
	}
	for i, n := range nics {
		if of[i] >= 0 {
			continue
		}
		p, err := c.newPort(in, n, nicName(n, i), all)
		if err != nil {
			return nil, err
		}
		ports[i], all = p, append(all, p)
	}
	return ports, nil
}

// newPort chooses what a NIC leaves open.
func (c *Controller) newPort(in *api.Instance, nic api.NIC, name string, others []api.Port) (api.Port, error) {
	n, err := c.networkOf(in.Project, nic.Network)
	if err != nil {
		return api.Port{}, api.AsError(err).WithField("spec.nics")
	}
	for i := 0; nic.Name == "" && index(others, name) >= 0; i++ {
		name = fmt.Sprintf("eth%d", i)
	}
	p := api.Port{Network: n.Name, Name: name, MAC: nic.MAC, Slot: 1}
	for slices.ContainsFunc(others, func(o api.Port) bool { return o.Slot == p.Slot }) {
		p.Slot++
	}
	if p.MAC == "" {
		p.MAC = macOf(in.ID, p.Slot-1).String()
	}
	used := func(a netip.Addr) bool {
		if slices.ContainsFunc(others, func(o api.Port) bool { return sameAddr(o.IPv4, a) || sameAddr(o.IPv6, a) }) {
			return true
		}
		owner := c.alloc.addrs[a]
		return owner != "" && owner != in.ID
	}
	v4, v6, err := c.net.Allocate(n, used, nic.IPv4, nic.IPv6)
	if err != nil {
		return api.Port{}, err
	}
	if v4.IsValid() {
		p.IPv4 = v4.String()
	}
	if v6.IsValid() {
		p.IPv6 = v6.String()
	}
	return p, nil
}

// settlePorts makes the ports of a guest that doesn't run what its spec says:
// a change may have had to wait for the next start.
func (t *task) settlePorts(ctx context.Context) error {
	c := t.c
	c.alloc.Lock()
	defer c.alloc.Unlock()
	had := t.in.Status.NICs
	ports, err := c.portsFor(t.in, had, false)
	if err != nil || slices.Equal(ports, slotted(had)) {
		return err
	}
	now, err := c.instances.Update(ctx, t.in.ID, func(in *api.Instance) error {
		in.Status.NICs = ports
		return nil
	})
	if err != nil {
		return err
	}
	c.alloc.releasePorts(t.in.ID, had)
	c.alloc.takePorts(t.in.ID, ports)
	in := c.instances.Clone(t.in) // what the task has found out is not in the record yet
	in.Meta, in.Status.NICs = now.Meta, ports
	t.in = in
	return nil
}

// newPorts are those of now that are not among old.
func newPorts(now, old []api.Port) []api.Port {
	return slices.DeleteFunc(slices.Clone(now), func(p api.Port) bool {
		return slices.ContainsFunc(old, func(o api.Port) bool { return samePort(p, o) })
	})
}

// samePort tells whether it is the same port to the guest.
func samePort(a, b api.Port) bool {
	return a.Network == b.Network && a.Name == b.Name && a.MAC == b.MAC && a.IPv4 == b.IPv4 && a.IPv6 == b.IPv6
}
