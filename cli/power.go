package cli

import (
	"context"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/cli/progress"
	"github.com/cleave-project/cleave/cli/settings"
	"github.com/cleave-project/cleave/client"
	"github.com/spf13/cobra"
)

// powerVerb describes a command that changes the power of instances.
type powerVerb struct {
	action  client.Action
	short   string
	long    string
	wait    bool // takes --wait
	stops   bool // takes --timeout and --force
	save    bool // takes --save
	fresh   bool // takes --fresh
	offered []api.Phase
}

func (a *app) startCmd() *cobra.Command {
	return a.powerCmd(powerVerb{action: client.Start, short: "Start instances", wait: true, fresh: true, offered: []api.Phase{api.PhaseStopped, api.PhaseFailed}})
}

func (a *app) stopCmd() *cobra.Command {
	return a.powerCmd(powerVerb{
		action: client.Stop, short: "Stop instances", stops: true, save: true, offered: []api.Phase{api.PhaseRunning, api.PhasePaused, api.PhaseStarting},
		long: `Each gets its stop signal, and SIGKILL when it has not ended after its stop timeout.

With --save a virtual machine's memory is kept, and the next start goes on from there. One that can't be saved runs on.`,
	})
}

func (a *app) restartCmd() *cobra.Command {
	return a.powerCmd(powerVerb{action: client.Restart, short: "Stop instances and start them again", wait: true, stops: true})
}

func (a *app) pauseCmd() *cobra.Command {
	return a.powerCmd(powerVerb{action: client.Pause, short: "Freeze instances where they are", offered: []api.Phase{api.PhaseRunning}})
}

func (a *app) resumeCmd() *cobra.Command {
	return a.powerCmd(powerVerb{action: client.Resume, short: "Let paused instances go on", offered: []api.Phase{api.PhasePaused}})
}

func (a *app) powerCmd(v powerVerb) *cobra.Command {
	var (
		timeout timeSpan
		force   bool
		wait    bool
		save    bool
		fresh   bool
	)
	cmd := &cobra.Command{
		Use:               string(v.action) + " NAME...",
		Short:             v.short,
		Long:              v.long,
		Args:              args(1, -1, "NAME..."),
		ValidArgsFunction: a.complete(-1, instanceNames(v.offered...)),
	}
	fs := cmd.Flags()
	if v.stops {
		fs.Var(&timeout, "timeout", "time between the stop signal and SIGKILL (default: the instance's own)")
		fs.BoolVar(&force, "force", false, "don't ask the guest: SIGKILL")
	}
	if v.save {
		fs.BoolVar(&save, "save", false, "keep the memory for the next start to go on from")
	}
	if v.fresh {
		fs.BoolVar(&fresh, "fresh", false, "drop the memory that was saved")
	}
	if v.wait {
		fs.BoolVar(&wait, "wait", false, "return only when it is healthy (without a health check: running)")
	}
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		if save && force {
			return usagef("--save asks the guest to hold still, --force asks it nothing: give one of them")
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		o := client.PowerOptions{Force: force, TimeoutSeconds: timeout.seconds(), Save: save, Fresh: fresh}
		return a.each(names, func(rep *progress.Reporter, name string) error {
			_, err := a.perform(cmd.Context(), rep, func(ctx context.Context) (*api.Operation, error) { return c.Power(ctx, name, v.action, o) })
			if err != nil || !wait {
				return err
			}
			return a.waitHealthy(cmd.Context(), name)
		})
	}
	return cmd
}

// timeSpan is a flag that takes 90, 1m30s, 7d.
type timeSpan struct {
	time.Duration
	set bool
}

// String, Set and Type make it a flag.
func (t *timeSpan) String() string { return "" }

// Type is the placeholder in help.
func (t *timeSpan) Type() string { return "TIME" }

// Set reads a time span.
func (t *timeSpan) Set(text string) (err error) {
	t.Duration, err = settings.ParseDuration(text)
	t.set = err == nil
	return err
}

// seconds is nil when the flag wasn't given.
func (t *timeSpan) seconds() *int {
	if !t.set {
		return nil
	}
	n := int((t.Duration + time.Second - 1) / time.Second)
	return &n
}
