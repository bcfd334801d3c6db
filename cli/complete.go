package cli

import (
	"context"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/cli/settings"
	"github.com/cleave-project/cleave/client"
	"github.com/spf13/cobra"
)

// completeWithin bounds what a shell waits for after TAB.
const completeWithin = time.Second

// lookup lists the names that completion may offer.
type lookup func(ctx context.Context, c *client.Client, prefix string) ([]string, error)

// complete offers live names for the first most arguments (all if negative),
// each only once.
func (a *app) complete(most int, find lookup) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if most >= 0 && len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.completeNames(find, args, prefix)
	}
}

func (a *app) completeNames(find lookup, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	c, err := a.client()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(context.Background(), completeWithin)
	defer cancel()
	names, _ := find(ctx, c, prefix) // what has come so far is good enough
	names = slices.DeleteFunc(names, func(n string) bool { return !strings.HasPrefix(n, prefix) || slices.Contains(args, n) })
	return names, cobra.ShellCompDirectiveNoFileComp
}

func collect[T any](seq iter.Seq2[T, error], name func(T) []string) ([]string, error) {
	var names []string
	for item, err := range seq {
		if err != nil {
			return names, err
		}
		names = append(names, name(item)...)
	}
	return names, nil
}

func metaName(m api.Meta) []string { return []string{m.Name} }

func instanceNames(phases ...api.Phase) lookup {
	return func(ctx context.Context, c *client.Client, prefix string) ([]string, error) {
		return collect(c.Instances(ctx, client.Filter{Prefix: prefix}), func(in api.Instance) []string {
			if len(phases) > 0 && !slices.Contains(phases, in.Status.Phase) {
				return nil
			}
			return []string{in.Name}
		})
	}
}

func imageNames(ctx context.Context, c *client.Client, _ string) ([]string, error) {
	return collect(c.Images(ctx), func(i api.Image) []string {
		var names []string
		for _, n := range i.Names {
			names = append(names, familiar(n))
		}
		return names
	})
}

func poolNames(ctx context.Context, c *client.Client, _ string) ([]string, error) {
	return collect(c.Pools(ctx), func(p api.Pool) []string { return metaName(p.Meta) })
}

func volumeNames(ctx context.Context, c *client.Client, _ string) ([]string, error) {
	return collect(c.Volumes(ctx), func(v api.Volume) []string { return metaName(v.Meta) })
}

func networkNames(ctx context.Context, c *client.Client, _ string) ([]string, error) {
	return collect(c.Networks(ctx), func(n api.Network) []string { return metaName(n.Meta) })
}

func tokenNames(ctx context.Context, c *client.Client, _ string) ([]string, error) {
	return collect(c.Tokens(ctx), func(t api.Token) []string { return metaName(t.Meta) })
}

func operationIDs(ctx context.Context, c *client.Client, _ string) ([]string, error) {
	return collect(c.Operations(ctx, false), func(o api.Operation) []string { return []string{o.ID + "\t" + o.Verb + " " + o.Target} })
}

// settingFlags completes the values of the flags made from settings.
func (a *app) settingFlags(cmd *cobra.Command, table settings.Table) {
	live := map[string]lookup{"pool": poolNames, "volume": volumeNames, "network": networkNames, "kernel": kernelNames}
	for _, s := range table {
		switch find := live[s.Flag]; {
		case s.Flag == "":
		case len(s.Choices) > 0:
			_ = cmd.RegisterFlagCompletionFunc(s.Flag, cobra.FixedCompletions(s.Choices, cobra.ShellCompDirectiveNoFileComp))
		case find != nil:
			_ = cmd.RegisterFlagCompletionFunc(s.Flag, func(_ *cobra.Command, _ []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
				return a.completeNames(find, nil, prefix)
			})
		case !s.IsSwitch() && s.Flag != "workdir":
			_ = cmd.RegisterFlagCompletionFunc(s.Flag, cobra.NoFileCompletions)
		}
	}
}

func (a *app) completionCmd() *cobra.Command {
	shells := []string{"bash", "zsh", "fish"}
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Print the completions for a shell",
		Long: `Names of instances, images and so on complete live, by asking the daemon.

  bash:  cleave completion bash > /etc/bash_completion.d/cleave
  zsh:   cleave completion zsh > "${fpath[1]}/_cleave"
  fish:  cleave completion fish > ~/.config/fish/completions/cleave.fish`,
		Args:              args(1, 1, "bash|zsh|fish"),
		ValidArgsFunction: cobra.FixedCompletions(shells, cobra.ShellCompDirectiveNoFileComp),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch args[0] {
			case "bash":
				return cmd.Root().GenBashCompletionV2(a.out.W, true)
			case "zsh":
				return cmd.Root().GenZshCompletion(a.out.W)
			case "fish":
				return cmd.Root().GenFishCompletion(a.out.W, true)
			}
			return usagef("there are no completions for %q, only for %s", args[0], strings.Join(shells, ", "))
		},
	}
}
