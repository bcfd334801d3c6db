package seed

import (
	"fmt"
	"strings"
)

// ethernet is a port in a network configuration of version 2, which is
// netplan's format. It has the keys that all of cloud-init's renderers know.
type ethernet struct {
	Match struct {
		MAC string `yaml:"macaddress"`
	} `yaml:"match"`
	Name        string   `yaml:"set-name,omitempty"`
	DHCP4       bool     `yaml:"dhcp4"`
	DHCP6       bool     `yaml:"dhcp6"`
	AcceptRA    bool     `yaml:"accept-ra"`
	Addresses   []string `yaml:"addresses,omitempty"`
	Routes      []route  `yaml:"routes,omitempty"`
	MTU         int      `yaml:"mtu,omitempty"`
	Nameservers *struct {
		Addresses []string `yaml:"addresses"`
		Search    []string `yaml:"search,omitempty"`
	} `yaml:"nameservers,omitempty"`
}

type route struct {
	To  string `yaml:"to"`
	Via string `yaml:"via"`
}

// network describes the ports with the addresses that they have.
func (c *Config) network() (string, error) {
	all := map[string]ethernet{}
	for i, n := range c.NICs {
		e := ethernet{Name: n.Name, MTU: n.MTU}
		e.Match.MAC = strings.ToLower(n.MAC.String())
		for _, a := range n.Addresses {
			e.Addresses = append(e.Addresses, a.String())
		}
		for _, g := range n.Gateways {
			// By prefix: older renderers don't know the word default.
			to := "0.0.0.0/0"
			if g.Is6() {
				to = "::/0"
			}
			e.Routes = append(e.Routes, route{to, g.String()})
		}
		if len(n.DNS) > 0 {
			e.Nameservers = &struct {
				Addresses []string `yaml:"addresses"`
				Search    []string `yaml:"search,omitempty"`
			}{Search: n.Search}
			for _, a := range n.DNS {
				e.Nameservers.Addresses = append(e.Nameservers.Addresses, a.String())
			}
		}
		all[fmt.Sprintf("port%d", i)] = e
	}
	return marshal(struct {
		Version   int                 `yaml:"version"`
		Ethernets map[string]ethernet `yaml:"ethernets"`
	}{2, all})
}
