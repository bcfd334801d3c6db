package container

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/internal/guests"
	"github.com/cleave-project/cleave/engine/internal/validate"
	"github.com/cleave-project/cleave/keeper"
)

// Signal implements engine.Engine.
func (e *Engine) Signal(ctx context.Context, id string, signal string) error {
	sig, err := guests.ParseSignal(signal)
	if err != nil {
		return err
	}
	if sig == unix.SIGSTOP {
		return api.Errorf(api.CodeInvalid, "SIGSTOP would stop the guest's first process and nothing else").
			WithHint("pause the guest")
	}
	k, err := e.book.Keeper()
	if err != nil {
		return err
	}
	if sig == unix.SIGKILL {
		// The first process takes all others of its PID namespace along; the
		// group has whatever else there might be.
		if err := e.cgroups.Group(id).Kill(); err != nil {
			return err
		}
	}
	err = k.Signal(ctx, id, sig)
	if sig == unix.SIGKILL && api.IsCode(err, api.CodeConflict) {
		return nil // killing the group has ended it already
	}
	return err
}

// Pause implements engine.Engine.
func (e *Engine) Pause(ctx context.Context, id string) error {
	g := e.cgroups.Group(id)
	err := g.Freeze(ctx)
	if err != nil {
		err = fmt.Errorf("pause guest %s: %w", id, err)
		if !errors.Is(err, os.ErrNotExist) {
			err = errors.Join(err, g.Thaw(context.WithoutCancel(ctx)))
		}
	}
	return gone(id, err)
}

// Resume implements engine.Engine.
func (e *Engine) Resume(ctx context.Context, id string) error {
	return gone(id, e.cgroups.Group(id).Thaw(ctx))
}

// gone turns a missing cgroup into what it means.
func gone(id string, err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return api.Errorf(api.CodeConflict, "guest %s is not running", id)
	}
	return err
}

// Update implements engine.Engine.
func (e *Engine) Update(ctx context.Context, id string, r api.Resources, root string) error {
	if err := validate.Resources(r, minMemory); err != nil {
		return err
	}
	rec, err := e.book.Read(id)
	if err != nil {
		return gone(id, err)
	}
	return gone(id, e.cgroups.Group(id).Set(e.limits(r, root, rec.System), false))
}

// Stats implements engine.Engine.
func (e *Engine) Stats(ctx context.Context, id string) (api.Stats, error) {
	s := api.Stats{ID: id, Time: time.Now().UTC()}
	err := e.cgroups.Group(id).Stats(&s)
	return s, gone(id, err)
}

// Agent implements engine.Engine.
func (e *Engine) Agent(ctx context.Context, id string) (net.Conn, error) {
	d, err := os.Open(e.dir(id))
	if err != nil {
		return nil, gone(id, err)
	}
	defer d.Close()
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, "unix", socketPath(d))
	switch {
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, os.ErrNotExist):
		return nil, api.Errorf(api.CodeConflict, "guest %s: its agent doesn't answer: it is not running", id)
	case err != nil:
		return nil, fmt.Errorf("guest %s: connect to its agent: %w", id, err)
	}
	return c, nil
}

// Console implements engine.Engine.
func (e *Engine) Console(ctx context.Context, id string, opts engine.ConsoleOptions) (engine.Console, error) {
	k, err := e.book.Keeper()
	if err != nil {
		return nil, err
	}
	a, err := k.Attach(ctx, id, keeper.AttachOptions{Stdin: opts.Stdin, Replay: opts.Replay})
	if err != nil {
		return nil, err
	}
	return a, nil
}

// Clean implements engine.Engine. It kills what still lives.
func (e *Engine) Clean(ctx context.Context, id string) error {
	if !guests.IDPattern.MatchString(id) {
		return api.Errorf(api.CodeInvalid, "%q is no instance id", id)
	}
	// The directory is made first and removed last: without it there is
	// nothing, or a guest of another engine.
	if _, err := os.Lstat(e.dir(id)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return e.clean(ctx, id)
}

func (e *Engine) clean(ctx context.Context, id string) error {
	ended := e.book.Expect(id)
	err := e.cgroups.Group(id).Kill()
	if err == nil {
		err = e.book.End(ctx, id)
	}
	if err != nil {
		return fmt.Errorf("end guest %s: %w", id, err)
	}
	// The agent's socket goes first, so that nobody finds half a guest.
	if err := os.Remove(e.dir(id) + "/" + socketName); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("clean guest %s: %w", id, err)
	}
	if err := e.cgroups.Group(id).Remove(ctx); err != nil {
		return fmt.Errorf("clean guest %s: %w", id, err)
	}
	e.images.release(id)
	if err := e.book.Forget(ctx, id, ended); err != nil {
		return fmt.Errorf("clean guest %s: %w", id, err)
	}
	if err := os.RemoveAll(e.dir(id)); err != nil {
		return fmt.Errorf("clean guest %s: %w", id, err)
	}
	return nil
}

// Forget implements engine.Engine.
func (e *Engine) Forget(ctx context.Context, id string) error {
	if err := e.Clean(ctx, id); err != nil {
		return err
	}
	if err := os.RemoveAll(e.LogDir(id)); err != nil {
		return fmt.Errorf("remove logs of guest %s: %w", id, err)
	}
	return nil
}
