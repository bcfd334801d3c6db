package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/cli/output"
	"github.com/cleave-project/cleave/cli/progress"
	"github.com/cleave-project/cleave/cli/stack"
	"github.com/cleave-project/cleave/client"
	"github.com/spf13/cobra"
)

// maxStackFile bounds what is read as a stack file.
const maxStackFile = 4 << 20

func (a *app) applyCmd() *cobra.Command {
	var file string
	var dryRun, prune, replace bool
	cmd := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Make a stack what its file says",
		Long: `The file describes networks, volumes and instances that belong together, in YAML. What is missing is created, what differs is changed, and what is as it should be is left alone: applying a file twice changes nothing.

  version: 1
  name: shop
  volumes:
    data: {size: 10GiB}
  instances:
    db:
      image: postgres:16
      volumes: ["data:/var/lib/postgresql/data"]
      health: {command: pg_isready, interval: 5s}
    web:
      image: shop/web:7
      depends-on: [db]
      publish: ["8080:80"]
      env: {DATABASE: db}
      memory: 256MiB

The keys of an instance are those of 'cleave set'; networks take the keys of 'cleave network set', volumes those of 'cleave volume set'. An instance waits for those it depends on until they are healthy. It is started unless it says "power: stopped"; one that ended with status 0, and is not to be restarted, has done its work.

The file is the whole truth about its instances: what it does not mention goes back to its default. Image, pool and architecture of an existing instance can't be changed, nor its kind while it runs; with --replace, it is deleted and created anew. Volumes and networks come and go while it runs where its kind can do that, else at its next start, which is said.`,
		Args: args(0, 0, ""),
	}
	fs := cmd.Flags()
	fs.StringVarP(&file, "file", "f", "", "the stack file (- for standard input)")
	fs.BoolVar(&dryRun, "dry-run", false, "only say what would be done")
	fs.BoolVar(&prune, "prune", false, "delete instances and networks of the stack that the file does not mention any more")
	fs.BoolVar(&replace, "replace", false, "delete and create anew what can't be changed")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, plan, err := a.plan(cmd.Context(), file)
		if err != nil {
			return err
		}
		steps := plan.Steps(prune)
		if dryRun {
			for _, step := range steps {
				fmt.Fprintf(a.out.W, "would %s\n", describeStep(step))
			}
		}
		if err := refuseReplace(steps, replace); err != nil || dryRun {
			return err
		}
		if len(steps) == 0 {
			a.note("nothing to change in stack %q", s.Name)
			return nil
		}
		return a.applyPlan(cmd.Context(), s, plan, prune)
	}
	return cmd
}

func (a *app) diffCmd() *cobra.Command {
	var file string
	var prune bool
	cmd := &cobra.Command{
		Use:   "diff -f FILE",
		Short: "Show how a stack differs from its file",
		Long:  `Prints a unified diff from what is to what the file says. The exit status is 0 when nothing differs, and 1 when something does (or could not be compared).`,
		Args:  args(0, 0, ""),
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "the stack file (- for standard input)")
	cmd.Flags().BoolVar(&prune, "prune", false, "also what apply --prune would delete")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		_, plan, err := a.plan(cmd.Context(), file)
		if err != nil {
			return err
		}
		steps := plan.Steps(prune)
		for _, step := range steps {
			a.printDiff(step.Diff)
		}
		if len(steps) > 0 {
			return statusError(exitFailed)
		}
		return nil
	}
	return cmd
}

func (a *app) printDiff(lines []stack.Line) {
	styles := map[byte]output.Style{'-': output.Bad, '+': output.Good, '@': output.Strong}
	for _, l := range lines {
		text := output.Clean(l.Text)
		if l.Op != '@' {
			text = string(l.Op) + text
		}
		fmt.Fprintln(a.out.W, a.out.Paint(text, styles[l.Op]))
	}
}

// readStack reads and checks a stack file.
func (a *app) readStack(file string) (*stack.Stack, error) {
	if file == "" {
		return nil, usagef("-f FILE is missing")
	}
	in := a.in
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, maxStackFile+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxStackFile {
		return nil, api.Errorf(api.CodeInvalid, "%s is larger than %s", file, api.Bytes(maxStackFile))
	}
	return stack.Parse(file, b)
}

// plan compares a file with what the daemon has.
func (a *app) plan(ctx context.Context, file string) (*stack.Stack, *stack.Plan, error) {
	s, err := a.readStack(file)
	if err != nil {
		return nil, nil, err
	}
	live, err := a.live(ctx)
	if err != nil {
		return nil, nil, err
	}
	p, err := s.Compare(*live)
	return s, p, err
}

func (a *app) live(ctx context.Context) (*stack.Live, error) {
	c, err := a.client()
	if err != nil {
		return nil, err
	}
	var l stack.Live
	if l.Networks, err = client.Collect(c.Networks(ctx)); err != nil {
		return nil, err
	}
	if l.Volumes, err = client.Collect(c.Volumes(ctx)); err != nil {
		return nil, err
	}
	l.Instances, err = client.Collect(c.Instances(ctx, client.Filter{}))
	return &l, err
}

// refuseReplace stops before anything is changed when something can't be
// changed but only replaced.
func refuseReplace(steps []stack.Step, allowed bool) error {
	var what []string
	for _, s := range steps {
		if s.Action == stack.Replace {
			what = append(what, s.Name+" ("+strings.Join(s.Fixed, ", ")+")")
		}
	}
	if len(what) == 0 || allowed {
		return nil
	}
	return api.Errorf(api.CodeUnsupported, "these can't be changed, only replaced: %s", strings.Join(what, ", ")).
		WithHint("--replace deletes and creates them anew; what is in their roots is lost, volumes stay")
}

func describeStep(s stack.Step) string {
	text := fmt.Sprintf("%s %s %s", s.Action, s.Kind, s.Name)
	switch {
	case s.Action == stack.Power:
		text = fmt.Sprintf("make %s %s %s", s.Kind, s.Name, s.Power)
	case s.Action == stack.Replace:
		text += " (" + strings.Join(s.Fixed, ", ") + ")"
	case s.Power != "":
		text += ", and make it " + string(s.Power)
	}
	return text
}

// deleteStack deletes all that carries the stack's label, dependents first.
func (a *app) deleteStack(ctx context.Context, file string, volumes bool) error {
	s, err := a.readStack(file)
	if err != nil {
		return err
	}
	live, err := a.live(ctx)
	if err != nil {
		return err
	}
	levels, err := s.Levels()
	if err != nil {
		return err
	}
	rank := map[string]int{}
	for i, l := range levels {
		for _, in := range l {
			rank[in.Name] = i
		}
	}
	stages := make([][]string, len(levels)+1)
	for _, in := range live.Instances {
		if in.Labels[stack.Label] == s.Name {
			stages[rank[in.Name]] = append(stages[rank[in.Name]], in.Name)
		}
	}
	for _, names := range slices.Backward(stages) {
		if len(names) == 0 {
			continue
		}
		err := a.each(names, func(rep *progress.Reporter, name string) error {
			_, err := a.perform(ctx, rep, func(ctx context.Context) (*api.Operation, error) { return a.daemon.DeleteInstance(ctx, name, true) })
			return err
		})
		if err != nil {
			return err
		}
	}
	for _, n := range live.Networks {
		if n.Labels[stack.Label] == s.Name {
			if err := a.daemon.DeleteNetwork(ctx, n.Name); err != nil {
				return err
			}
		}
	}
	return a.deleteStackVolumes(ctx, s.Name, live.Volumes, volumes)
}

func (a *app) deleteStackVolumes(ctx context.Context, name string, live []api.Volume, really bool) error {
	for _, v := range live {
		switch {
		case v.Labels[stack.Label] != name:
		case really:
			if err := a.daemon.DeleteVolume(ctx, v.Name); err != nil {
				return err
			}
		default:
			a.note("volume %s stays; --volumes deletes it too", v.Name)
		}
	}
	return nil
}
