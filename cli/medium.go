package cli

import (
	"context"
	"strings"

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
		a.note("%s", a.inKeys(ctx, name, op.Step))
	}
	return err
}

// inKeys writes what the daemon says of fields with the keys that users know
// them by. The record has both sides of each change; without it the daemon's
// own words do.
func (a *app) inKeys(ctx context.Context, name, text string) string {
	in, err := a.daemon.Instance(ctx, name)
	if err != nil || in.Status.Running == nil {
		return text
	}
	for _, ch := range in.Status.Running.Changes(&in.Spec) {
		told := ch.String()
		ch.Path = settings.Instance.KeyOf("spec." + ch.Path)
		text = strings.Replace(text, " "+told, " "+ch.String(), 1)
	}
	return text
}
