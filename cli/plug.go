package cli

import (
	"context"
	"path/filepath"
	"strings"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/client"
	"github.com/spf13/cobra"
)

// pluggingHelp is said of all commands that change the devices of guests.
const pluggingHelp = `A virtual machine gets and loses it while it runs, a container only ports; what a running guest can't be given, or had when it started, changes at its next start. Which it is, is said.`

func (a *app) attachVolumeCmd() *cobra.Command {
	var readOnly bool
	cmd := &cobra.Command{
		Use:   "attach VOLUME|DIR INSTANCE TARGET",
		Short: "Give an instance a volume, also while it runs",
		Long: `The volume, or directory of the host, is at TARGET in the instance. A system of its own that boots from its own disk gets a disk, and mounts it itself.

` + pluggingHelp,
		Example: `  cleave volume create data --type disk --size 20GiB
  cleave volume attach data web /var/lib/data`,
		Args:              args(3, 3, "VOLUME|DIR INSTANCE TARGET"),
		ValidArgsFunction: a.completeEach(volumeNames, instanceNames()),
	}
	cmd.Flags().BoolVar(&readOnly, "read-only", false, "it can't be written there")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		m := &api.Mount{Target: filepath.Clean(args[2]), ReadOnly: readOnly}
		if err := mountSource(args[0], &m.Volume, &m.HostPath); err != nil {
			return err
		}
		return a.plug(cmd.Context(), args[1], func(ctx context.Context, c *client.Client) (*api.Operation, error) {
			return c.AttachDevice(ctx, args[1], api.Attachment{Mount: m})
		})
	}
	return cmd
}

func (a *app) detachVolumeCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "detach VOLUME|DIR INSTANCE [TARGET]",
		Short: "Take a volume from an instance, also while it runs",
		Long: `The volume stays, with what is in it. While something in the instance uses it, that is refused. TARGET is needed when it is there more than once.

` + pluggingHelp,
		Example:           "  cleave volume detach data web",
		Args:              args(2, 3, "VOLUME|DIR INSTANCE [TARGET]"),
		ValidArgsFunction: a.completeEach(volumeNames, instanceNames()),
		RunE: func(cmd *cobra.Command, args []string) error {
			var d api.Detachment
			if err := mountSource(args[0], &d.Volume, &d.HostPath); err != nil {
				return err
			}
			if len(args) == 3 {
				d.Target = filepath.Clean(args[2])
			}
			return a.plug(cmd.Context(), args[1], func(ctx context.Context, c *client.Client) (*api.Operation, error) {
				return c.DetachDevice(ctx, args[1], d)
			})
		},
	}
}

// mountSource tells a volume from a directory of the host, as --volume does.
func mountSource(text string, volume, dir *string) (err error) {
	if strings.Contains(text, "/") || text == "." || text == ".." {
		*dir, err = filepath.Abs(text)
		return err
	}
	*volume = text
	return nil
}

func (a *app) attachNetworkCmd() *cobra.Command {
	var n api.NIC
	cmd := &cobra.Command{
		Use:   "attach NETWORK INSTANCE",
		Short: "Give an instance a port on a network, also while it runs",
		Long: `The port has addresses that it keeps, and the instance's name leads to it on that network. In a system of its own that boots from its own disk, that system configures it, by DHCP for example.

` + pluggingHelp,
		Example: `  cleave network attach backend web
  cleave network attach backend web --ip 10.20.0.5 --name lan1`,
		Args:              args(2, 2, "NETWORK INSTANCE"),
		ValidArgsFunction: a.completeEach(networkNames, instanceNames()),
	}
	fs := cmd.Flags()
	fs.StringVar(&n.IPv4, "ip", "", "IPv4 address (default: one that is free)")
	named(fs, "ip", "ADDR")
	fs.StringVar(&n.IPv6, "ip6", "", "IPv6 address (default: one that is free)")
	named(fs, "ip6", "ADDR")
	fs.StringVar(&n.MAC, "mac", "", "MAC address (default: made from the instance's id)")
	named(fs, "mac", "MAC")
	fs.StringVar(&n.Name, "name", "", "interface name in the instance (default: the next free of eth0, eth1, ...)")
	named(fs, "name", "NAME")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		n.Network = args[0]
		return a.plug(cmd.Context(), args[1], func(ctx context.Context, c *client.Client) (*api.Operation, error) {
			return c.AttachDevice(ctx, args[1], api.Attachment{NIC: &n})
		})
	}
	return cmd
}

func (a *app) detachNetworkCmd() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:               "detach NETWORK INSTANCE",
		Short:             "Take an instance off a network, also while it runs",
		Long:              pluggingHelp,
		Example:           "  cleave network detach backend web",
		Args:              args(2, 2, "NETWORK INSTANCE"),
		ValidArgsFunction: a.completeEach(networkNames, instanceNames()),
	}
	cmd.Flags().StringVar(&name, "name", "", "interface name in the instance, where it has several ports on the network")
	named(cmd.Flags(), "name", "NAME")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.plug(cmd.Context(), args[1], func(ctx context.Context, c *client.Client) (*api.Operation, error) {
			return c.DetachDevice(ctx, args[1], api.Detachment{Network: args[0], NIC: name})
		})
	}
	return cmd
}

// plug changes a device and says what has to wait.
func (a *app) plug(ctx context.Context, instance string, change func(context.Context, *client.Client) (*api.Operation, error)) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	op, err := a.one(ctx, func(ctx context.Context) (*api.Operation, error) { return change(ctx, c) })
	if err == nil && op.Step != "" {
		a.note("%s", a.inKeys(ctx, instance, op.Step))
	}
	return err
}

// completeEach completes every argument by its own kind of names.
func (a *app) completeEach(kinds ...lookup) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) >= len(kinds) {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.completeNames(kinds[len(args)], nil, prefix)
	}
}
