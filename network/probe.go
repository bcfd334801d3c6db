package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/network/internal/netns"
	"github.com/cleave-project/cleave/network/link"
	"github.com/cleave-project/cleave/network/nft"
)

// Probe tells what this host can do for networks. What the kernel can do is
// tried, in a network namespace that exists for that only.
func (m *Manager) Probe(_ context.Context) []api.Finding {
	var all []api.Finding
	err := netns.InNew(func() {
		all = append(all,
			finding("bridges", "up to 1023 guests each", tryBridge(), "load the modules bridge and veth"),
			finding("packet filter", "separation of guests, NAT, published ports", tryTables(),
				"load the modules nf_tables, nft_fib_inet, nft_nat, nft_masq, nft_reject_inet, nft_limit and nft_ct"),
			finding("network rates", "limits per port, both ways", tryRates(), "load the modules sch_tbf, sch_ingress, cls_u32, act_mirred and ifb"),
		)
	})
	if err != nil {
		all = append(all, finding("network namespaces", "", err, "run the daemon as root, on a kernel with CONFIG_NET_NS"))
	}
	return append(all, m.probeIPv6(), m.probeResolvers(), m.probeDoors())
}

func finding(name, detail string, err error, remedy string) api.Finding {
	if err != nil {
		return api.Finding{Area: "network", Name: name, State: "missing", Detail: err.Error(), Remedy: remedy}
	}
	return api.Finding{Area: "network", Name: name, State: "ok", Detail: detail}
}

// probe names what is made in the namespace.
const probeBridge, probePort = "probe", "probe0"

func tryBridge() (err error) {
	c, err := link.Dial()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = probeBridge
	if err := c.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("make a bridge: %w", err)
	}
	index, err := c.Index(probeBridge)
	if err != nil {
		return err
	}
	_, noIPv6 := os.Stat("/proc/sys/net/ipv6")
	_, err = c.AddVeth(link.Veth{
		Name: probePort, MAC: net.HardwareAddr{0xfe, 0, 0, 0, 0, 1}, Bridge: index, MTU: defaultMTU, IPv6: noIPv6 == nil,
		Peer: "probe1", PeerMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, PID: unix.Gettid(),
	})
	return err
}

func tryTables() error {
	t, err := nft.Open("probe", 1)
	if err != nil {
		return err
	}
	return errors.Join(t.Load(), t.Close())
}

func tryRates() (err error) {
	c, err := link.Dial()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	index, err := c.Index(probePort)
	if err != nil {
		return err
	}
	if err := c.Limit(index, 1<<20); err != nil {
		return err
	}
	shaper, err := c.Divert(index, probePort+"i", 1)
	if err != nil {
		return err
	}
	return c.Limit(shaper, 1<<20)
}

func (m *Manager) probeIPv6() api.Finding {
	f := api.Finding{Area: "network", Name: "IPv6", State: "ok", Detail: "published ports don't answer on ::1, only on 127.0.0.1 and the host's other addresses"}
	if !m.ipv6 {
		f.State, f.Detail, f.Remedy = "missing", "the kernel has it switched off: networks are IPv4 only", "boot without ipv6.disable=1"
	}
	return f
}

func (m *Manager) probeResolvers() api.Finding {
	f := api.Finding{Area: "network", Name: "name resolution", State: "ok"}
	var servers []string
	for _, u := range m.resolvers() {
		servers = append(servers, u.prefix.Addr().String())
	}
	f.Detail = "guests' queries go on to " + strings.Join(servers, ", ")
	if len(servers) == 0 {
		f.State, f.Detail = "limited", "no name server in "+m.resolv+": guests resolve names of their own network only"
		f.Remedy = "name one there"
	}
	return f
}

// probeDoors looks for firewalls that our rules can't pass.
func (m *Manager) probeDoors() api.Finding {
	f := api.Finding{Area: "network", Name: "other firewalls", State: "ok", Detail: "none drops what networks need"}
	c, err := nftables.New()
	if err != nil {
		return finding(f.Name, "", err, "")
	}
	dropping, err := droppingChains(c)
	if err != nil {
		return finding(f.Name, "", err, "")
	}
	var foreign []string
	passed := false
	for _, ch := range dropping {
		if isIptables(ch) {
			passed = true
		} else {
			foreign = append(foreign, fmt.Sprintf("chain %s of table %s drops by policy", ch.Name, ch.Table.Name))
		}
	}
	m.mu.Lock()
	bridges := m.bridgeNames()
	m.mu.Unlock()
	if len(bridges) == 0 {
		bridges = []string{"cleave0"}
	}
	if firewalld, err := c.ListTableOfFamily("firewalld", nftables.TableFamilyINet); err == nil && firewalld != nil {
		return api.Finding{
			Area: "network", Name: f.Name, State: "limited",
			Detail: "firewalld rejects what belongs to no zone that allows it",
			Remedy: "firewall-cmd --permanent --zone=trusted --add-interface=" + strings.Join(bridges, " --add-interface=") + " && firewall-cmd --reload",
		}
	}
	switch {
	case len(foreign) > 0:
		f.State, f.Detail = "limited", strings.Join(foreign, "; ")+": guests reach nothing outside, or no DNS"
		f.Remedy = "accept there what comes in or goes out by " + strings.Join(bridges, ", ")
	case passed:
		f.Detail = "iptables drops by policy; rules of ours let our bridges pass"
	}
	return f
}
