package cli

import (
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
// runs. One that ended or failed is an error.
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
	case s.Phase == api.PhaseRunning:
		return s.Health == "" || s.Health == "healthy", nil
	}
	return false, nil
}
