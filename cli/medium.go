package cli

import (
	"context"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/cli/settings"
	"github.com/spf13/cobra"
)

func (a *app) insertCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "insert NAME IMAGE|FILE",
		Short: "Put a medium into a machine's CD drive, also while it runs",
		Long:  "The medium is an imported ISO image, or a file of the host. It takes the place of the one that is in the drive.",
		Example: `  cleave insert desk installer.iso
  cleave insert desk ./drivers.iso`,
		Args:              args(2, 2, "NAME IMAGE|FILE"),
		ValidArgsFunction: a.complete(1, instanceNames()),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd.Context(), args[0], "iso="+args[1])
		},
	}
}

func (a *app) ejectCmd() *cobra.Command {
	return &cobra.Command{
		Use:               "eject NAME",
		Short:             "Take the medium out of a machine's CD drive, also while it runs",
		Args:              args(1, 1, "NAME"),
		ValidArgsFunction: a.complete(1, instanceNames()),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd.Context(), args[0], "iso=")
		},
	}
}

// change makes one change of an instance, as set does.
func (a *app) change(ctx context.Context, name string, assignments ...string) error {
	patch := settings.Patch{Table: settings.Instance}
	for _, text := range assignments {
		if err := patch.Assign(text); err != nil {
			return usageError{err}
		}
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	op, err := a.one(ctx, func(ctx context.Context) (*api.Operation, error) { return c.PatchInstance(ctx, name, 0, &patch) })
	if err == nil && op.Step != "" {
		a.note("%s", op.Step)
	}
	return err
}
