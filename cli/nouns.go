package cli

import (
	"context"
	"iter"

	"github.com/cleave-project/cleave/cli/output"
	"github.com/cleave-project/cleave/cli/progress"
	"github.com/cleave-project/cleave/cli/settings"
	"github.com/cleave-project/cleave/client"
	"github.com/spf13/cobra"
)

// listVerb makes the list command of a noun.
func listVerb[T any](a *app, short string, l output.Listing[T], all func(context.Context, *client.Client) iter.Seq2[T, error]) *cobra.Command {
	cmd := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: short, Args: args(0, 0, ""), ValidArgsFunction: cobra.NoFileCompletions}
	f := listFormat(cmd, l.ColumnNames())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		selected, err := checkList(f, l)
		if err != nil {
			return err
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		items, err := client.Collect(all(cmd.Context(), c))
		if err != nil {
			return err
		}
		return printList(a, f, selected, items)
	}
	return cmd
}

// showVerb makes the show command of a noun.
func showVerb[T any](a *app, short, arg string, find lookup, get func(context.Context, *client.Client, string) (*T, error), describe func(*output.Sections, *T)) *cobra.Command {
	cmd := &cobra.Command{Use: "show " + arg, Aliases: []string{"info"}, Short: short, Args: args(1, 1, arg), ValidArgsFunction: a.complete(1, find)}
	f := showFormat(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := f.check(); err != nil {
			return err
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		v, err := get(cmd.Context(), c, args[0])
		if err != nil {
			return err
		}
		return printOne(a, f, v, func(s *output.Sections) { describe(s, v) })
	}
	return cmd
}

// deleteVerb makes the delete command of a noun.
func deleteVerb(a *app, short string, find lookup, del func(context.Context, *client.Client, string) error) *cobra.Command {
	return &cobra.Command{
		Use: "delete NAME...", Aliases: []string{"rm"}, Short: short, Args: args(1, -1, "NAME..."), ValidArgsFunction: a.complete(-1, find),
		RunE: func(cmd *cobra.Command, names []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			return a.each(names, func(_ *progress.Reporter, name string) error { return del(cmd.Context(), c, name) })
		},
	}
}

// createVerb makes the create command of a noun; the flags are the table's.
func createVerb(a *app, short, long string, table settings.Table, create func(ctx context.Context, c *client.Client, name string, p *settings.Patch) error) *cobra.Command {
	p := &settings.Patch{Table: table}
	cmd := &cobra.Command{Use: "create NAME", Short: short, Long: long, Args: args(1, 1, "NAME"), ValidArgsFunction: cobra.NoFileCompletions}
	settings.Flags(cmd.Flags(), p)
	a.settingFlags(cmd, table)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		return create(cmd.Context(), c, args[0], p)
	}
	return cmd
}

// setVerb makes the set command of a noun.
func setVerb(a *app, short string, table settings.Table, find lookup, set func(ctx context.Context, c *client.Client, name string, p *settings.Patch) error) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "set NAME KEY=VALUE...",
		Short:             short,
		Long:              "KEY=VALUE sets, KEY- goes back to the default.\n\n" + settingsHelp(table),
		Args:              args(2, -1, "NAME KEY=VALUE..."),
		ValidArgsFunction: a.completeSet(table, find),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		p := &settings.Patch{Table: table}
		for _, text := range args[1:] {
			if err := p.Assign(text); err != nil {
				return usageError{err}
			}
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		return set(cmd.Context(), c, args[0], p)
	}
	return cmd
}
