package cli

import (
	"cmp"
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/cli/progress"
	"github.com/cleave-project/cleave/client"
)

// waitHealthy waits until an instance is healthy or, without a health check,
// runs. One that ended or failed, or whose check has failed for good, is an
// error.
func (a *app) waitHealthy(ctx context.Context, name string) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	ready, err := a.isReady(ctx, name)
	if ready || err != nil {
		return err
	}
	// Events since a moment ago, so that none between the look above and
	// the subscription is missed.
	events := a.daemon.Events(ctx, client.EventOptions{Since: a.now().Add(-10 * time.Second).UTC().Format(time.RFC3339Nano)})
	rep := a.reporter()
	defer rep.Close()
	rep.Update(name, progress.State{Title: name, Step: "waiting until it is healthy"})
	for e, err := range events {
		if err != nil {
			return err
		}
		if e.Name != name {
			continue
		}
		if ready, err := a.isReady(ctx, name); ready || err != nil {
			return err
		}
	}
	return errors.New("the stream of events ended")
}

func (a *app) isReady(ctx context.Context, name string) (bool, error) {
	in, err := a.daemon.Instance(ctx, name)
	if err != nil {
		return false, err
	}
	switch s := in.Status; {
	case s.Phase == api.PhaseFailed && s.Error != nil:
		return false, s.Error
	case s.Phase == api.PhaseFailed, s.Phase == api.PhaseStopped, s.Phase == api.PhaseDeleting:
		return false, api.Errorf(api.CodeConflict, "%s is %s", name, stateOf(*in)).WithHint("'cleave logs %s' shows what it wrote", name)
	case s.Phase == api.PhaseRunning && s.Health == "":
		// No check, or none yet.
		checked, err := a.hasCheck(ctx, in)
		return !checked, err
	case s.Health == "unhealthy":
		return false, api.Errorf(api.CodeConflict, "%s runs but is unhealthy: its health check fails", name).
			WithHint("'cleave logs %s' shows what it wrote, 'cleave show %s' the check", name, name)
	}
	return in.Status.Health == "healthy", nil
}

// hasCheck tells whether an instance has a health check, its own or its
// image's.
func (a *app) hasCheck(ctx context.Context, in *api.Instance) (bool, error) {
	check := in.Spec.Health
	if check == nil {
		img, err := a.daemon.Image(ctx, cmp.Or(in.Status.Digest, in.Spec.Image))
		switch {
		case api.IsCode(err, api.CodeNotFound):
			return false, nil // deleted since
		case err != nil:
			return false, err
		}
		check = img.Config.Health
	}
	return check != nil && len(check.Command) > 0, nil
}
