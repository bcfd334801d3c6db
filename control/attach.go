package control

import (
	"context"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/cleave-project/cleave/agent"
	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/keeper"
)

// undoTime bounds the undoing of what failed, which goes on when the caller
// has gone.
const undoTime = 30 * time.Second

// waiter is somebody who wants to be attached to a guest that is about to
// start.
type waiter struct {
	opts engine.ConsoleOptions
	ch   chan attached // takes one
}

// Console is an attachment that can send signals to the entry point too. Its
// errors call the instance by its name.
type Console struct {
	engine.Console
	signal func(ctx context.Context, name string) error
	naming func(error) error
}

// Signal sends a signal, by its name, to the entry point.
func (c *Console) Signal(ctx context.Context, name string) error {
	return c.naming(c.signal(ctx, name))
}

// Resize implements engine.Console.
func (c *Console) Resize(cols, rows uint16) error { return c.naming(c.Console.Resize(cols, rows)) }

// Exit implements engine.Console.
func (c *Console) Exit(ctx context.Context) (api.ExitStatus, error) {
	x, err := c.Console.Exit(ctx)
	return x, c.naming(err)
}

// attached is what somebody who waited for a start gets.
type attached struct {
	console engine.Console
	err     error
}

// Agent connects to the agent of a running instance. The caller closes it.
func (c *Controller) Agent(ctx context.Context, project, name string) (*agent.Client, error) {
	in, err := c.Instance(project, name)
	if err != nil {
		return nil, err
	}
	g := c.live(in.ID)
	if g == nil || c.exit(g) != nil {
		return nil, notRunning(in)
	}
	if in.Status.Phase == api.PhasePaused {
		return nil, api.Errorf(api.CodeConflict, "instance %q is paused", name).WithHint("`cleave resume %s` lets it go on", name)
	}
	e, err := c.engineFor(in.Spec.Kind)
	if err != nil {
		return nil, err
	}
	client, err := greet(ctx, e, in.ID)
	return client, c.naming(err)
}

// greet connects to an agent. That a machine's line still holds something of
// an earlier daemon's shows at its first use, in place of a greeting; then
// it's clean.
func greet(ctx context.Context, e engine.Engine, id string) (a *agent.Client, err error) {
	for range 2 {
		var conn net.Conn
		if conn, err = e.Agent(ctx, id); err != nil {
			return nil, err
		}
		if a, err = agent.Dial(ctx, conn); err == nil || ctx.Err() != nil {
			return a, err
		}
	}
	return nil, err
}

// Console attaches to the entry point's streams and tells whether they are a
// terminal. With Start the guest is attached to before its first output is
// lost, and its end is kept until it was told.
func (c *Controller) Console(ctx context.Context, project, name string, opts ConsoleOptions) (*Console, bool, error) {
	in, err := c.Instance(project, name)
	if err != nil {
		return nil, false, err
	}
	terminal := in.Spec.TTY || in.Status.System
	e, err := c.engineFor(in.Spec.Kind)
	if err != nil {
		return nil, false, err
	}
	wrap := func(con engine.Console, err error) (*Console, bool, error) {
		if err != nil {
			return nil, false, c.naming(err)
		}
		signal := func(ctx context.Context, name string) error { return e.Signal(ctx, in.ID, name) }
		return &Console{con, signal, c.naming}, terminal, nil
	}
	if c.live(in.ID) != nil {
		return wrap(e.Console(ctx, in.ID, opts.ConsoleOptions))
	}
	if !opts.Start {
		return nil, false, notRunning(in)
	}
	con, err := c.startAttached(ctx, e, in, opts.ConsoleOptions)
	return wrap(con, err)
}

// startAttached starts an instance and attaches to it before its first output.
func (c *Controller) startAttached(ctx context.Context, e engine.Engine, in *api.Instance, opts engine.ConsoleOptions) (engine.Console, error) {
	opts.Replay = true
	w := waiter{opts, make(chan attached, 1)}
	c.mu.Lock()
	c.waiting[in.ID] = append(c.waiting[in.ID], w)
	c.mu.Unlock()
	op, err := c.PowerInstance(ctx, in.Project, in.Name, PowerRequest{Action: "start"})
	if err != nil {
		c.giveUp(in.ID, w)
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer cancel()
	over := make(chan struct{})
	watch.Go(func() {
		defer close(over)
		for err == nil && !op.Finished() && ctx.Err() == nil {
			op, err = c.WaitOperation(ctx, op.ID, op.Changes)
		}
	})
	select {
	case a := <-w.ch:
		return a.console, a.err
	case <-over:
	}
	switch {
	case !c.giveUp(in.ID, w): // it is being attached right now
		a := <-w.ch
		return a.console, a.err
	case err != nil:
		return nil, err
	case op.Error != nil:
		return nil, op.Error
	case !op.Finished():
		return nil, ctx.Err()
	}
	// Somebody else's start was first, or a stop came before ours.
	return e.Console(ctx, in.ID, opts)
}

// giveUp takes somebody off those who wait, if he still does.
func (c *Controller) giveUp(id string, w waiter) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.waiting[id], func(o waiter) bool { return o.ch == w.ch })
	if i < 0 {
		return false
	}
	c.waiting[id] = slices.Delete(c.waiting[id], i, i+1)
	if len(c.waiting[id]) == 0 {
		delete(c.waiting, id)
	}
	return true
}

// attachWaiting serves those who asked for a start. It runs before the
// guest's end can be dealt with, so that even the shortest is attached to.
func (c *Controller) attachWaiting(ctx context.Context, e engine.Engine, id string) {
	for _, w := range c.takeWaiting(id) {
		con, err := e.Console(ctx, id, w.opts)
		w.ch <- attached{con, err}
	}
}

func (c *Controller) takeWaiting(id string) []waiter {
	c.mu.Lock()
	defer c.mu.Unlock()
	waiters := c.waiting[id]
	delete(c.waiting, id)
	return waiters
}

// Logs yields what the entry point wrote.
func (c *Controller) Logs(ctx context.Context, project, name string, opts keeper.LogOptions, yield func(keeper.LogEntry) error) error {
	in, err := c.Instance(project, name)
	if err != nil {
		return err
	}
	e, err := c.engineFor(in.Spec.Kind)
	if err != nil {
		return err
	}
	if opts.Follow {
		// Following ends with the guest.
		g := c.live(in.ID)
		if g == nil {
			opts.Follow = false
		} else {
			opts.Ended = g.ended
		}
	}
	return keeper.ReadLogs(ctx, e.LogDir(in.ID), opts, yield)
}
