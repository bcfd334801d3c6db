package cli

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/cli/progress"
	"github.com/cleave-project/cleave/cli/stack"
	"github.com/cleave-project/cleave/client"
)

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
		var v *api.Volume
		if v, err = p.daemon.PatchVolume(ctx, s.Name, s.Revision, s.Patch); err == nil {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.noteDisk(v)
		}
	}
	return err
}

func (p *applier) instance(ctx context.Context, s stack.Step) error {
	begin := func(f func(context.Context) (*api.Operation, error)) error {
		op, err := p.perform(ctx, p.rep, f)
		if err == nil && s.Action == stack.Update && op.Step != "" {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.note("%s: %s", s.Name, p.inKeys(ctx, s.Name, op.Step))
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
