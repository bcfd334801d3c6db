package cli

import (
	"context"
	"slices"
	"strings"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/cli/progress"
	"github.com/cleave-project/cleave/cli/settings"
	"github.com/spf13/cobra"
)

func (a *app) deleteCmd() *cobra.Command {
	var (
		force bool
		file  string
		data  bool
	)
	cmd := &cobra.Command{
		Use:     "delete NAME... | -f FILE",
		Aliases: []string{"rm"},
		Short:   "Delete instances, or all of a stack",
		Long: `A running instance is deleted only with --force. Volumes stay.

With -f, the instances and networks of the stack in FILE are deleted, running or not; its volumes, and what is in them, only with --volumes.`,
		ValidArgsFunction: a.complete(-1, instanceNames()),
	}
	fs := cmd.Flags()
	fs.BoolVar(&force, "force", false, "also when it runs")
	fs.StringVarP(&file, "file", "f", "", "delete the stack described in a file (- for standard input)")
	fs.BoolVar(&data, "volumes", false, "with -f: delete the stack's volumes too")
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		switch {
		case file != "" && len(names) > 0:
			return usagef("give names or -f FILE, not both")
		case file != "":
			return a.deleteStack(cmd.Context(), file, data)
		case len(names) == 0:
			return usagef("NAME is missing")
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		return a.each(names, func(rep *progress.Reporter, name string) error {
			_, err := a.perform(cmd.Context(), rep, func(ctx context.Context) (*api.Operation, error) { return c.DeleteInstance(ctx, name, force) })
			return err
		})
	}
	return cmd
}

func (a *app) renameCmd() *cobra.Command {
	return &cobra.Command{
		Use:               "rename NAME NEWNAME",
		Short:             "Give an instance another name",
		Args:              args(2, 2, "NAME NEWNAME"),
		ValidArgsFunction: a.complete(1, instanceNames()),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			_, err = a.one(cmd.Context(), func(ctx context.Context) (*api.Operation, error) { return c.RenameInstance(ctx, args[0], args[1]) })
			return err
		},
	}
}

func (a *app) copyCmd() *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use:   "copy NAME NEWNAME",
		Short: "Copy a stopped instance, also behind another wall",
		Long: `The copy has the files of the root and the settings, and addresses of its own. Named volumes are not copied: both mount them.

'cleave set NAME kind=KIND' puts an instance itself behind another wall.`,
		Example: `  cleave stop web
  cleave copy web web2
  cleave copy web web-vm --kind vm`,
		Args:              args(2, 2, "NAME NEWNAME"),
		ValidArgsFunction: a.complete(1, instanceNames(api.PhaseStopped, api.PhaseFailed)),
	}
	cmd.Flags().StringVar(&kind, "kind", "", "the wall around the copy: "+strings.Join(kindNames, ", ")+" (default: the same)")
	named(cmd.Flags(), "kind", "KIND")
	_ = cmd.RegisterFlagCompletionFunc("kind", cobra.FixedCompletions(kindNames, cobra.ShellCompDirectiveNoFileComp))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if kind != "" && !slices.Contains(kindNames, kind) {
			return usagef("--kind %s: choose from %s", kind, strings.Join(kindNames, ", "))
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		_, err = a.one(cmd.Context(), func(ctx context.Context) (*api.Operation, error) {
			return c.CopyInstance(ctx, args[0], args[1], api.Kind(kind))
		})
		return err
	}
	return cmd
}

func (a *app) setCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "set NAME KEY=VALUE...",
		Short: "Change the settings of an instance, also while it runs",
		Long: `KEY=VALUE sets, KEY- goes back to the default. Lists are replaced as a whole, their elements separated by commas. What a running guest can't be given is used from its next start on; that is said.

` + settingsHelp(settings.Instance),
		Example: `  cleave set web cpus=1.5 memory=1GiB net.out=10MiB
  cleave set web env.DEBUG=1 env.OLD- label.tier=front
  cleave set web publish=8080:80,8443:443`,
		Args:              args(2, -1, "NAME KEY=VALUE..."),
		ValidArgsFunction: a.completeSet(settings.Instance, instanceNames()),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		for _, text := range args[1:] {
			if k, _, _ := strings.Cut(text, "="); k == "power" {
				return usagef("power is changed by start, stop, pause and resume")
			}
		}
		return a.change(cmd.Context(), args[0], args[1:]...)
	}
	return cmd
}
