package cli

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/cli/output"
	"github.com/cleave-project/cleave/client"
	"github.com/spf13/cobra"
)

func (a *app) eventsCmd() *cobra.Command {
	var (
		since  string
		follow bool
		o      client.EventOptions
		f      = format{allowed: []string{string(output.Table), string(output.JSON)}}
	)
	cmd := &cobra.Command{
		Use:   "events [NAME]",
		Short: "Print what happens, as it happens",
		Long:  `With -o json, each event is one line. The stream goes on when the daemon is restarted.`,
		Example: `  cleave events --since 1h --follow=false
  cleave events web -o json`,
		Args:              args(0, 1, "NAME"),
		ValidArgsFunction: a.complete(1, instanceNames()),
	}
	fs := cmd.Flags()
	fs.StringVar(&since, "since", "", "begin then: 10m (ago), 2026-01-02T15:04:05Z, or after the event with this id")
	named(fs, "since", "TIME|ID")
	fs.BoolVar(&follow, "follow", true, "go on with what happens; --follow=false ends after the past")
	fs.BoolVarP(&o.AllProjects, "all-projects", "A", false, "of all projects")
	fs.StringVarP(&f.name, "output", "o", string(output.Table), "format: table, json")
	named(fs, "output", "FORMAT")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(f.allowed, cobra.ShellCompDirectiveNoFileComp))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := f.check(); err != nil {
			return err
		}
		o.NoFollow = !follow
		if o.Since = since; since != "" && !isID(since) {
			t, err := a.since(since)
			if err != nil {
				return err
			}
			o.Since = t.UTC().Format(time.RFC3339Nano)
		}
		if o.NoFollow && since == "" {
			o.Since = time.Unix(0, 0).UTC().Format(time.RFC3339) // all that is kept
		}
		return a.printEvents(cmd, args, o, output.Format(f.name))
	}
	return cmd
}

// isID tells an event's id from an age in seconds, which needs its unit here.
func isID(s string) bool {
	_, err := strconv.ParseInt(s, 10, 64)
	return err == nil
}

func (a *app) printEvents(cmd *cobra.Command, args []string, o client.EventOptions, f output.Format) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	for e, err := range c.Events(ctx, o) {
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		case len(args) > 0 && e.Name != args[0]:
			continue
		}
		if f == output.JSON {
			err = a.out.JSONLine(e)
		} else {
			err = a.printEvent(e, o.AllProjects)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// printEvent prints a line whose columns can't know what is to come: they
// fit what events usually say.
func (a *app) printEvent(e api.Event, project bool) error {
	name := e.Name
	if project && e.Project != "" {
		name = e.Project + "/" + name
	}
	stamp := e.Time.Local().Format("2006-01-02 15:04:05")
	line := fmt.Sprintf("%s  %-18s  %-16s  %s", a.out.Paint(stamp, output.Dim), output.Clean(e.Type), output.Clean(name), output.Clean(e.Message))
	_, err := fmt.Fprintln(a.out.W, strings.TrimRight(line, " "))
	return err
}
