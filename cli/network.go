package cli

import (
	"context"
	"fmt"
	"iter"
	"strings"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/cli/output"
	"github.com/cleave-project/cleave/cli/settings"
	"github.com/cleave-project/cleave/client"
	"github.com/spf13/cobra"
)

func (a *app) networkCmd() *cobra.Command {
	list := listVerb(a, "List networks", networkListing(), func(ctx context.Context, c *client.Client) iter.Seq2[api.Network, error] { return c.Networks(ctx) })
	show := showVerb(a, "Show one network", "NAME", networkNames, func(ctx context.Context, c *client.Client, n string) (*api.Network, error) { return c.Network(ctx, n) }, a.describeNetworkObject)
	create := createVerb(a, "Create a network", "Subnets that are left out are chosen so that they clash with nothing on the host, and then stay.", settings.Network,
		func(ctx context.Context, c *client.Client, name string, p *settings.Patch) error {
			var n api.Network
			if err := p.Into(&n); err != nil {
				return err
			}
			n.Name = name
			_, err := c.CreateNetwork(ctx, &n)
			return err
		})
	set := setVerb(a, "Change a network", settings.Network, networkNames,
		func(ctx context.Context, c *client.Client, name string, p *settings.Patch) error {
			_, err := c.PatchNetwork(ctx, name, 0, p)
			return err
		})
	del := deleteVerb(a, "Delete networks that no instance uses", networkNames, func(ctx context.Context, c *client.Client, n string) error { return c.DeleteNetwork(ctx, n) })
	return noun("network", "Networks: switches that instances are joined by", list, show, create, set, a.attachNetworkCmd(), a.detachNetworkCmd(), del)
}

func networkListing() output.Listing[api.Network] {
	return output.Listing[api.Network]{
		Name: func(n api.Network) string { return n.Name },
		Columns: []output.Column[api.Network]{
			{Head: "NAME", Flex: true, Cell: func(n api.Network) string { return n.Name }},
			{Head: "STATE", Flex: true, Cell: func(n api.Network) string { return n.Status.State }, Style: func(n api.Network) output.Style { return readyStyle(n.Status.State) }},
			{Head: "IPV4", Cell: func(n api.Network) string { return n.Status.IPv4 }},
			{Head: "IPV6", Cell: func(n api.Network) string { return n.Status.IPv6 }},
			{Head: "BRIDGE", Cell: func(n api.Network) string { return n.Status.Bridge }},
			{Head: "PORTS", Right: true, Cell: func(n api.Network) string { return fmt.Sprint(len(n.Status.UsedBy)) }},
			{Head: "USED BY", Extra: true, Flex: true, Cell: func(n api.Network) string { return strings.Join(n.Status.UsedBy, " ") }},
			{Head: "LABELS", Extra: true, Flex: true, Cell: func(n api.Network) string { return strings.Join(pairs(n.Labels), " ") }},
		},
	}
}

func (a *app) describeNetworkObject(s *output.Sections, n *api.Network) {
	s.Pair("Name", n.Name)
	s.Pair("ID", n.ID)
	s.Styled("State", n.Status.State, readyStyle(n.Status.State))
	s.Pair("Bridge", n.Status.Bridge)
	s.Pair("Created", a.ago(&n.Created))
	s.Each("Labels", pairs(n.Labels))
	s.Head("Addresses")
	s.Pair("IPv4", n.Status.IPv4)
	s.Pair("IPv6", n.Status.IPv6)
	s.Pair("NAT", map[bool]string{true: "yes", false: "no"}[n.Spec.NAT == nil || *n.Spec.NAT])
	s.Pair("DNS domain", n.Spec.Domain)
	s.Pair("MTU", nonzero(n.Spec.MTU))
	s.Head("Used by")
	s.Each("Instance", n.Status.UsedBy)
}
