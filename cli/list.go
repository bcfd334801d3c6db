package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/cli/output"
	"github.com/cleave-project/cleave/client"
	"github.com/spf13/cobra"
)

func (a *app) listCmd() *cobra.Command {
	var (
		labels []string
		filter client.Filter
		phase  string
	)
	listing := a.instanceListing()
	cmd := &cobra.Command{
		Use:     "list [PREFIX]",
		Aliases: []string{"ls"},
		Short:   "List instances",
		Example: `  cleave list
  cleave list --label app=shop --state running -o name
  cleave list --columns name,ipv4,ports,health`,
		Args:              args(0, 1, "PREFIX"),
		ValidArgsFunction: a.complete(1, instanceNames()),
	}
	f := listFormat(cmd, listing.ColumnNames())
	fs := cmd.Flags()
	fs.StringArrayVarP(&labels, "label", "l", nil, "only those with this label")
	named(fs, "label", "NAME=VALUE")
	fs.StringVar(&phase, "state", "", "only those in this state")
	fs.BoolVarP(&filter.AllProjects, "all-projects", "A", false, "of all projects")
	states := []string{"creating", "stopped", "starting", "running", "paused", "failed", "deleting"}
	_ = cmd.RegisterFlagCompletionFunc("state", cobra.FixedCompletions(states, cobra.ShellCompDirectiveNoFileComp))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if filter.AllProjects && f.columns == "" {
			f.columns = "project,name,state,kind,ipv4,image,age"
		}
		selected, err := checkList(f, listing)
		if err != nil {
			return err
		}
		if len(args) > 0 {
			filter.Prefix = args[0]
		}
		filter.Phase, filter.Labels = api.Phase(phase), map[string]string{}
		for _, l := range labels {
			k, v, ok := strings.Cut(l, "=")
			if !ok {
				return usagef("label %q has no value; write NAME=VALUE", l)
			}
			filter.Labels[k] = v
		}
		return a.list(cmd.Context(), f, selected, filter)
	}
	return cmd
}

func (a *app) list(ctx context.Context, f *format, l output.Listing[api.Instance], filter client.Filter) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	items, err := client.Collect(c.Instances(ctx, filter))
	if err != nil {
		return err
	}
	return printList(a, f, l, items)
}

type instanceColumn = output.Column[api.Instance]

func (a *app) instanceListing() output.Listing[api.Instance] {
	return output.Listing[api.Instance]{
		Name: func(in api.Instance) string { return in.Name },
		Columns: []instanceColumn{
			{Head: "PROJECT", Extra: true, Cell: func(in api.Instance) string { return in.Project }},
			{Head: "NAME", Flex: true, Cell: func(in api.Instance) string { return in.Name }},
			{Head: "STATE", Cell: stateOf, Raw: func(in api.Instance) string { return string(in.Status.Phase) }, Style: stateStyle},
			{Head: "KIND", Cell: kindOf},
			{Head: "IPV4", Cell: func(in api.Instance) string { return address(in, func(p api.Port) string { return p.IPv4 }) }},
			{Head: "IPV6", Extra: true, Cell: func(in api.Instance) string { return address(in, func(p api.Port) string { return p.IPv6 }) }},
			{Head: "IMAGE", Flex: true, Cell: func(in api.Instance) string { return familiar(in.Spec.Image) }},
			{Head: "AGE", Right: true, Cell: func(in api.Instance) string { return a.age(in.Created) }, Raw: func(in api.Instance) string { return stamp(in.Created) }},
			{Head: "UP", Extra: true, Right: true, Cell: a.up, Raw: func(in api.Instance) string { return stampOf(in.Status.Started) }},
			{Head: "HEALTH", Extra: true, Cell: func(in api.Instance) string { return in.Status.Health }},
			{Head: "PORTS", Extra: true, Flex: true, Cell: func(in api.Instance) string { return strings.Join(ports(in.Spec.Publish), " ") }},
			{Head: "CPUS", Extra: true, Right: true, Cell: func(in api.Instance) string { return number(in.Spec.Resources.CPUs) }},
			{
				Head: "MEMORY", Extra: true, Right: true, Cell: func(in api.Instance) string { return sizeText(in.Spec.Resources.Memory) },
				Raw: func(in api.Instance) string { return fmt.Sprint(int64(in.Spec.Resources.Memory)) },
			},
			{Head: "RESTART", Extra: true, Cell: func(in api.Instance) string { return string(in.Spec.Restart) }},
			{Head: "RESTARTS", Extra: true, Right: true, Cell: func(in api.Instance) string { return strconv.Itoa(in.Status.Restarts) }},
			{Head: "PID", Extra: true, Right: true, Cell: func(in api.Instance) string { return nonzero(in.Status.PID) }},
			{Head: "LABELS", Extra: true, Flex: true, Cell: func(in api.Instance) string { return strings.Join(pairs(in.Labels), " ") }},
			{Head: "ID", Extra: true, Cell: func(in api.Instance) string { return in.ID }},
		},
	}
}

// stateOf is the phase, with what is worth knowing about it.
func stateOf(in api.Instance) string {
	s := &in.Status
	switch {
	case s.Phase == api.PhaseRunning && s.Health != "" && s.Health != "healthy":
		return string(s.Phase) + " (" + s.Health + ")"
	case s.Phase == api.PhaseStopped && !s.Saved && s.Exit != nil && s.Exit.Code != 0:
		return string(s.Phase) + " (" + exitText(s.Exit) + ")"
	case s.Phase == api.PhaseStopped && s.Saved:
		return string(s.Phase) + " (saved)"
	}
	return string(s.Phase)
}

func exitText(e *api.ExitStatus) string {
	switch {
	case e.OOMKilled:
		return "out of memory"
	case e.Reason == "panic", e.Reason == "crash":
		return e.Reason
	case e.Signal != "":
		return e.Signal
	case e.Code < 0:
		return "status lost"
	}
	return strconv.Itoa(e.Code)
}

func stateStyle(in api.Instance) output.Style {
	switch in.Status.Phase {
	case api.PhaseRunning:
		if in.Status.Health == "unhealthy" {
			return output.Bad
		}
		return output.Good
	case api.PhaseFailed:
		return output.Bad
	case api.PhaseStopped:
		return output.Dim
	}
	return output.Busy
}

func kindOf(in api.Instance) string {
	if in.Spec.Kind == "" {
		return string(api.KindContainer)
	}
	return string(in.Spec.Kind)
}

// address is the first of an instance's addresses, without prefix length.
func address(in api.Instance, of func(api.Port) string) string {
	for _, p := range in.Status.NICs {
		if addr, _, _ := strings.Cut(of(p), "/"); addr != "" {
			return addr
		}
	}
	return ""
}

func (a *app) up(in api.Instance) string {
	if in.Status.Phase != api.PhaseRunning || in.Status.Started == nil {
		return ""
	}
	return a.age(*in.Status.Started)
}

func (a *app) age(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return output.Span(a.now().Sub(t))
}

// ago is a time for people: exact, and how long since.
func (a *app) ago(t *time.Time) string {
	if t == nil || t.IsZero() {
		return ""
	}
	return t.Local().Format("2006-01-02 15:04:05") + " (" + a.age(*t) + " ago)"
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

func stampOf(t *time.Time) string {
	if t == nil {
		return ""
	}
	return stamp(*t)
}

// ports prints published ports as they are written after --publish.
func ports(list []api.Publish) []string {
	var out []string
	for _, p := range list {
		s := fmt.Sprintf("%d:%d", p.HostPort, p.GuestPort)
		switch {
		case strings.Contains(p.HostIP, ":"):
			s = "[" + p.HostIP + "]:" + s
		case p.HostIP != "":
			s = p.HostIP + ":" + s
		}
		if p.Protocol != "" && p.Protocol != "tcp" {
			s += "/" + p.Protocol
		}
		out = append(out, s)
	}
	return out
}

// pairs prints a map as NAME=VALUE, sorted.
func pairs(m map[string]string) []string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+"="+m[k])
	}
	return out
}

func number(f float64) string {
	if f == 0 {
		return ""
	}
	return strconv.FormatFloat(f, 'g', -1, 64)
}

func nonzero[N ~int | ~int64 | ~uint64](n N) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}
