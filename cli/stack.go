package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"

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

The file is the whole truth about its instances: what it does not mention goes back to its default. Image, kind, pool and networks of an existing instance can't be changed; with --replace, it is deleted and created anew.`,
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

// applier carries out a plan.
type applier struct {
	*app
	stack *stack.Stack
	rep   *progress.Reporter
	mu    sync.Mutex // for output
}

func (a *app) applyPlan(ctx context.Context, s *stack.Stack, plan *stack.Plan, prune bool) error {
	p := &applier{app: a, stack: s, rep: a.reporter()}
	defer p.rep.Close()
	// Networks go before what needs them; those that are gone come after
	// what needed them.
	stages := slices.Concat([][]stack.Step{plan.Networks, plan.Volumes}, plan.Levels)
	if prune {
		for _, kind := range []string{"instance", "network"} {
			stages = append(stages, slices.DeleteFunc(slices.Clone(plan.Gone), func(s stack.Step) bool { return s.Kind != kind }))
		}
	}
	for _, stage := range stages {
		if err := p.stage(ctx, stage); err != nil {
			return err
		}
	}
	return nil
}

// stage carries out steps that need nothing of each other.
func (p *applier) stage(ctx context.Context, steps []stack.Step) error {
	var names []string
	byName := map[string]stack.Step{}
	for _, s := range steps {
		if s.Action != stack.Keep || p.stack.HasDependents(s.Name) {
			names = append(names, s.Name)
			byName[s.Name] = s
		}
	}
	if len(names) == 0 {
		return nil
	}
	return p.each(names, func(_ *progress.Reporter, name string) error {
		s := byName[name]
		if err := p.step(ctx, s); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if s.Action != stack.Keep {
			p.mu.Lock()
			defer p.mu.Unlock()
			fmt.Fprintln(p.out.W, pastTense(s))
		}
		return nil
	})
}

func pastTense(s stack.Step) string {
	done := map[stack.Action]string{stack.Create: "created", stack.Update: "updated", stack.Replace: "replaced", stack.Power: "made " + string(s.Power), stack.Delete: "deleted"}
	return fmt.Sprintf("%s %s %s", s.Kind, s.Name, done[s.Action])
}

func (p *applier) step(ctx context.Context, s stack.Step) error {
	var err error
	switch {
	case s.Kind == "network":
		err = p.network(ctx, s)
	case s.Kind == "volume":
		err = p.volume(ctx, s)
	default:
		err = p.instance(ctx, s)
	}
	if err == nil && s.Kind == "instance" && s.Action != stack.Delete && p.stack.HasDependents(s.Name) {
		err = p.waitHealthy(ctx, s.Name)
	}
	return err
}

func (p *applier) network(ctx context.Context, s stack.Step) (err error) {
	switch s.Action {
	case stack.Create:
		_, err = p.daemon.CreateNetwork(ctx, s.Network)
	case stack.Update:
		_, err = p.daemon.PatchNetwork(ctx, s.Name, s.Revision, s.Patch)
	case stack.Delete:
		err = p.daemon.DeleteNetwork(ctx, s.Name)
	}
	return err
}

func (p *applier) volume(ctx context.Context, s stack.Step) (err error) {
	switch s.Action {
	case stack.Create:
		_, err = p.daemon.CreateVolume(ctx, s.Volume)
	case stack.Update:
		_, err = p.daemon.PatchVolume(ctx, s.Name, s.Revision, s.Patch)
	}
	return err
}

func (p *applier) instance(ctx context.Context, s stack.Step) error {
	begin := func(f func(context.Context) (*api.Operation, error)) error {
		op, err := p.perform(ctx, p.rep, f)
		if err == nil && s.Action == stack.Update && op.Step != "" {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.note("%s: %s", s.Name, op.Step)
		}
		return err
	}
	switch s.Action {
	case stack.Delete, stack.Replace:
		err := begin(func(ctx context.Context) (*api.Operation, error) { return p.daemon.DeleteInstance(ctx, s.Name, true) })
		if err != nil || s.Action == stack.Delete {
			return err
		}
		return p.createInstance(s, begin)
	case stack.Create:
		return p.createInstance(s, begin)
	case stack.Update:
		if err := begin(func(ctx context.Context) (*api.Operation, error) {
			return p.daemon.PatchInstance(ctx, s.Name, s.Revision, s.Patch)
		}); err != nil {
			return err
		}
	}
	return p.power(s.Name, s.Power, begin)
}

func (p *applier) createInstance(s stack.Step, begin func(func(context.Context) (*api.Operation, error)) error) error {
	in, power := *s.Instance, s.Instance.Spec.Power
	in.Spec.Power = ""
	err := begin(func(ctx context.Context) (*api.Operation, error) {
		return p.daemon.CreateInstance(ctx, &in, power != api.PowerStopped)
	})
	if err != nil || power != api.PowerPaused {
		return err
	}
	return p.power(s.Name, power, begin)
}

// power brings an instance to a state, if there is one to bring it to.
func (p *applier) power(name string, to api.Power, begin func(func(context.Context) (*api.Operation, error)) error) error {
	if to == "" {
		return nil
	}
	action := map[api.Power]client.Action{api.PowerRunning: client.Start, api.PowerStopped: client.Stop, api.PowerPaused: client.Pause}[to]
	return begin(func(ctx context.Context) (*api.Operation, error) {
		if to == api.PowerRunning {
			if in, err := p.daemon.Instance(ctx, name); err == nil && in.Status.Phase == api.PhasePaused {
				action = client.Resume
			}
		}
		return p.daemon.Power(ctx, name, action, client.PowerOptions{})
	})
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
