package control

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/network"
)

func linkName(id string, n int) string { return fmt.Sprintf("c%sn%d", id, n) }

// ports are the instance's NICs as the network package wants them.
func (c *Controller) ports(in *api.Instance) ([]network.Port, error) {
	var ports []network.Port
	for i := range in.Status.NICs {
		p, err := c.port(in, i)
		if err != nil {
			return nil, err
		}
		ports = append(ports, p)
	}
	return ports, nil
}

func (c *Controller) port(in *api.Instance, i int) (network.Port, error) {
	p := in.Status.NICs[i]
	n, err := c.networkOf(in.Project, p.Network)
	if err != nil {
		return network.Port{}, err
	}
	mac, err := net.ParseMAC(p.MAC)
	if err != nil {
		return network.Port{}, err
	}
	return network.Port{
		Network: n.ID, Instance: in.ID, Link: linkName(in.ID, slot(in.Status.NICs, i)), Name: p.Name, MAC: mac,
		IPv4: addrOf(p.IPv4), IPv6: addrOf(p.IPv6), MTU: cmp.Or(n.Spec.MTU, 1500), Hostname: cmp.Or(in.Spec.Hostname, in.Name),
		In: in.Spec.Resources.NetIn, Out: in.Spec.Resources.NetOut,
	}, nil
}

// links are the host's ends of an instance's ports while it runs.
func links(in *api.Instance) []string {
	var names []string
	for i := range in.Status.NICs {
		names = append(names, linkName(in.ID, slot(in.Status.NICs, i)))
	}
	return names
}

// guestPort is a port as the guest sees it. The first has the default routes.
func (c *Controller) guestPort(in *api.Instance, i int, p network.Port) (engine.NIC, error) {
	nic := engine.NIC{Name: p.Name, MAC: p.MAC, MTU: p.MTU}
	nic.IPv4, _ = netip.ParsePrefix(in.Status.NICs[i].IPv4)
	nic.IPv6, _ = netip.ParsePrefix(in.Status.NICs[i].IPv6)
	if i > 0 {
		return nic, nil
	}
	n, err := c.networkOf(in.Project, in.Status.NICs[i].Network)
	if err == nil {
		nic.Gateway4, nic.Gateway6 = c.net.Gateway(n)
	}
	return nic, err
}

func addrOf(prefix string) netip.Addr {
	p, err := netip.ParsePrefix(prefix)
	if err != nil {
		return netip.Addr{}
	}
	return p.Addr()
}

// connect fills in the network side of a spec.
func (c *Controller) connect(in *api.Instance, s *engine.Spec) ([]network.Port, error) {
	ports, err := c.ports(in)
	if err != nil {
		return nil, err
	}
	hosts := &strings.Builder{}
	hosts.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	for i, p := range ports {
		nic, err := c.guestPort(in, i, p)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			n, err := c.networkOf(in.Project, in.Status.NICs[i].Network)
			if err != nil {
				return nil, err
			}
			s.Resolv = network.ResolvConf(n)
			for _, a := range []netip.Addr{p.IPv4, p.IPv6} {
				if a.IsValid() {
					fmt.Fprintf(hosts, "%s\t%s\n", a, s.Hostname)
				}
			}
		}
		s.NICs = append(s.NICs, nic)
	}
	if len(ports) == 0 {
		fmt.Fprintf(hosts, "127.0.1.1\t%s\n", s.Hostname)
	}
	s.Hosts = hosts.String()
	return ports, nil
}

// disconnect takes the instance off its networks.
func (c *Controller) disconnect(ctx context.Context, in *api.Instance) error {
	c.unname(in)
	if len(in.Spec.Publish) > 0 {
		if err := c.net.SetForwards(ctx, in.ID, nil); err != nil {
			return err
		}
	}
	ports, err := c.ports(in)
	if err != nil {
		return err
	}
	for _, p := range ports {
		if err := c.net.Detach(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// name makes the instance known by its name on its networks.
func (c *Controller) name(in *api.Instance) {
	addrs := map[string][]netip.Addr{} // by network
	for _, p := range in.Status.NICs {
		if n, err := c.networkOf(in.Project, p.Network); err == nil {
			for _, a := range []netip.Addr{addrOf(p.IPv4), addrOf(p.IPv6)} {
				if a.IsValid() {
					addrs[n.ID] = append(addrs[n.ID], a)
				}
			}
		}
	}
	for id, all := range addrs {
		c.net.SetName(id, in.Name, all...)
	}
}

func (c *Controller) unname(in *api.Instance) {
	for _, p := range in.Status.NICs {
		if n, err := c.networkOf(in.Project, p.Network); err == nil {
			c.net.DeleteName(n.ID, in.Name)
		}
	}
}

// wire has the engine attach the guest's ports in either way that there is.
func (c *Controller) wire(s *engine.Spec, ports []network.Port) {
	s.AttachNet = func(ctx context.Context, pid int) error {
		for _, p := range ports {
			if err := c.net.Attach(ctx, p, pid); err != nil {
				return err
			}
		}
		return nil
	}
	s.Taps = func(ctx context.Context) ([]*os.File, error) {
		var taps []*os.File
		for _, p := range ports {
			f, err := c.net.OpenTap(ctx, p)
			if err != nil {
				for _, f := range taps {
					f.Close()
				}
				return nil, err
			}
			taps = append(taps, f)
		}
		return taps, nil
	}
}
