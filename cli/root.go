package cli

import (
	"strings"

	"github.com/cleave-project/cleave/cli/settings"
	"github.com/cleave-project/cleave/client"
	"github.com/spf13/cobra"
)

// The groups of commands, as the root's help shows them.
const (
	groupEveryday = "everyday"
	groupChange   = "change"
	groupLook     = "look"
	groupNouns    = "nouns"
	groupStacks   = "stacks"
	groupOther    = "other"
)

var groups = []*cobra.Group{
	{ID: groupEveryday, Title: "Instances"},
	{ID: groupLook, Title: "Looking"},
	{ID: groupChange, Title: "Changing"},
	{ID: groupStacks, Title: "Stacks"},
	{ID: groupNouns, Title: "Everything else is NOUN VERB"},
	{ID: groupOther, Title: "Other"},
}

// newRoot makes the command for a command line.
func newRoot(a *app, args []string) *cobra.Command {
	cobra.EnableCommandSorting = false // ours are in the order of use
	root := &cobra.Command{
		Use:               "cleave",
		Short:             "Run isolated machines: containers, paravirtual and virtual machines",
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		Args:              cobra.ArbitraryArgs,
		RunE:              helpOrUnknown,
		Example: `  cleave launch base web --publish 8080:80 -- httpd -f -p 80 -h /etc
  cleave run --rm -it debian:bookworm -- bash
  cleave exec web -- cat /etc/hosts`,
	}
	root.AddGroup(groups...)
	fs := root.PersistentFlags()
	fs.StringVar(&a.opts.Socket, "socket", "", "socket of the daemon (CLEAVE_SOCKET; default "+client.DefaultSocket+")")
	fs.StringVar(&a.opts.Host, "host", "", "use the daemon at https://HOST:PORT, with the token in CLEAVE_TOKEN (CLEAVE_HOST)")
	fs.StringVar(&a.opts.CAFile, "ca-file", "", "certificates to trust for --host (CLEAVE_CA_FILE)")
	fs.StringVar(&a.opts.Project, "project", "", "project to work in (CLEAVE_PROJECT; default \"default\")")
	_ = root.RegisterFlagCompletionFunc("project", cobra.NoFileCompletions)
	_ = root.RegisterFlagCompletionFunc("host", cobra.NoFileCompletions)
	root.SetHelpCommand(&cobra.Command{Use: "help [COMMAND]", Short: "Explain a command", GroupID: groupOther, RunE: func(cmd *cobra.Command, args []string) error {
		target, rest, err := root.Find(args)
		if err != nil || len(rest) > 0 {
			return unknown(root, args)
		}
		return target.Help()
	}})
	root.SetHelpFunc(a.help)
	root.SetFlagErrorFunc(flagError)

	for _, e := range a.entries(invoked(root, args)) {
		c := e.make()
		c.GroupID = e.group
		root.AddCommand(c)
	}
	return root
}

// entry is a command that isn't made before it is needed.
type entry struct {
	name  string
	group string
	make  func() *cobra.Command
}

// entries are the commands in the order of help; only the one called only,
// if there is such a one: making all of them, with some 400 flags, costs more
// than most commands take.
func (a *app) entries(only string) []entry {
	all := []entry{
		{"launch", groupEveryday, a.launchCmd},
		{"run", groupEveryday, a.runCmd},
		{"exec", groupEveryday, a.execCmd},
		{"shell", groupEveryday, a.shellCmd},
		{"start", groupEveryday, a.startCmd},
		{"stop", groupEveryday, a.stopCmd},
		{"restart", groupEveryday, a.restartCmd},
		{"delete", groupEveryday, a.deleteCmd},
		{"list", groupLook, a.listCmd},
		{"show", groupLook, a.showCmd},
		{"logs", groupLook, a.logsCmd},
		{"console", groupLook, a.consoleCmd},
		{"vnc", groupLook, a.vncCmd},
		{"screenshot", groupLook, a.screenshotCmd},
		{"stats", groupLook, a.statsCmd},
		{"top", groupLook, a.topCmd},
		{"events", groupLook, a.eventsCmd},
		{"create", groupChange, a.createCmd},
		{"set", groupChange, a.setCmd},
		{"rename", groupChange, a.renameCmd},
		{"copy", groupChange, a.copyCmd},
		{"pause", groupChange, a.pauseCmd},
		{"resume", groupChange, a.resumeCmd},
		{"cp", groupChange, a.cpCmd},
		{"export", groupChange, a.exportCmd},
		{"insert", groupChange, a.insertCmd},
		{"eject", groupChange, a.ejectCmd},
		{"apply", groupStacks, a.applyCmd},
		{"diff", groupStacks, a.diffCmd},
		{"instance", groupNouns, a.instanceCmd},
		{"image", groupNouns, a.imageCmd},
		{"kernel", groupNouns, a.kernelCmd},
		{"pool", groupNouns, a.poolCmd},
		{"volume", groupNouns, a.volumeCmd},
		{"network", groupNouns, a.networkCmd},
		{"operation", groupNouns, a.operationCmd},
		{"token", groupNouns, a.tokenCmd},
		{"doctor", groupOther, a.doctorCmd},
		{"verify", groupOther, a.verifyCmd},
		{"version", groupOther, a.versionCmd},
		{"completion", groupOther, a.completionCmd},
	}
	for _, e := range all {
		if e.name == only {
			return []entry{e}
		}
	}
	return all
}

// invoked is the first word that is no flag of the root's.
func invoked(root *cobra.Command, args []string) string {
	for i := 0; i < len(args); i++ {
		name, isFlag := strings.CutPrefix(args[i], "--")
		switch {
		case !isFlag:
			return args[i]
		case root.PersistentFlags().Lookup(name) != nil:
			i++ // its value
		}
	}
	return ""
}

// noun makes the command that holds a noun's verbs.
func noun(name, short string, verbs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: name, Short: short, Args: cobra.ArbitraryArgs, RunE: helpOrUnknown}
	c.AddCommand(verbs...)
	return c
}

// instanceCmd gives the everyday verbs their noun.
func (a *app) instanceCmd() *cobra.Command {
	return noun("instance", "Instances: the commands above, as NOUN VERB",
		a.launchCmd(), a.runCmd(), a.createCmd(), a.listCmd(), a.showCmd(), a.setCmd(), a.deleteCmd(), a.renameCmd(), a.copyCmd(), a.exportCmd(),
		a.startCmd(), a.stopCmd(), a.restartCmd(), a.pauseCmd(), a.resumeCmd(),
		a.execCmd(), a.shellCmd(), a.consoleCmd(), a.vncCmd(), a.screenshotCmd(), a.insertCmd(), a.ejectCmd(), a.logsCmd(), a.cpCmd(), a.statsCmd(), a.topCmd())
}

// helpOrUnknown is what a command with subcommands does itself.
func helpOrUnknown(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	return unknown(cmd, args)
}

func unknown(cmd *cobra.Command, args []string) error {
	var names []string
	for _, c := range cmd.Commands() {
		if !c.Hidden {
			names = append(append(names, c.Name()), c.Aliases...)
		}
	}
	near := settings.Nearest(args[0], names)
	if len(near) == 0 {
		return usagef("there is no command '%s %s'", cmd.CommandPath(), args[0])
	}
	return usagef("there is no command '%s %s'; did you mean %s?", cmd.CommandPath(), args[0], strings.Join(near, " or "))
}

// flagError explains a flag that can't be understood.
func flagError(cmd *cobra.Command, err error) error {
	text := err.Error()
	if name, ok := strings.CutPrefix(text, "unknown flag: --"); ok {
		var names []string
		cmd.Flags().VisitAll(func(f *flag) {
			if !f.Hidden {
				names = append(names, f.Name)
			}
		})
		if near := settings.Nearest(name, names); len(near) > 0 {
			return usagef("unknown flag --%s; did you mean --%s?", name, strings.Join(near, " or --"))
		}
		return usagef("unknown flag --%s", name)
	}
	if strings.Contains(text, "shorthand") && strings.Contains(cmd.Use, "[-- COMMAND") {
		return usagef("%s; put -- before a command that has flags of its own", text)
	}
	return usageError{err}
}

// args checks how many arguments there are; names are for the message.
func args(least, most int, names string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, given []string) error {
		switch {
		case len(given) < least:
			return usagef("%s is missing: %s needs %s", missing(names, len(given)), cmd.CommandPath(), names)
		case most >= 0 && len(given) > most:
			return usagef("%q is too much: %s takes %s", given[most], cmd.CommandPath(), orNothing(names))
		}
		return nil
	}
}

func missing(names string, given int) string {
	words := strings.Fields(names)
	return strings.TrimSuffix(words[min(given, len(words)-1)], "...")
}

func orNothing(names string) string {
	if names == "" {
		return "no arguments"
	}
	return "only " + names
}
