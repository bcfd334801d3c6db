package machine

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/cleave-project/cleave/agent"
	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/keeper"
)

// Console implements engine.Engine. Output, and a terminal, are those of the
// monitor's process; the input of an entry point without a terminal goes by
// the agent, which can end it.
func (e *Engine) Console(ctx context.Context, id string, opts engine.ConsoleOptions) (engine.Console, error) {
	k, err := e.book.Keeper()
	if err != nil {
		return nil, err
	}
	r, err := e.book.Read(id)
	if err != nil || r.Machine == nil {
		return nil, notRunning(id)
	}
	c := &console{e: e, id: id, agentSized: r.Machine.Terminal}
	if opts.Stdin {
		c.stdin = nowhere{}
	}
	a, err := k.Attach(ctx, id, keeper.AttachOptions{Stdin: opts.Stdin && r.Terminal, Replay: opts.Replay})
	if err != nil {
		return nil, err
	}
	c.Attachment = a
	switch {
	case opts.Stdin && r.Terminal:
		c.stdin = a.Stdin()
	case opts.Stdin && r.Machine.Stdin && r.Alive():
		if err := c.openInput(ctx); err != nil {
			a.Close()
			return nil, err
		}
	}
	return c, nil
}

// nowhere is the input of a guest that has none, or takes none any more.
type nowhere struct{}

func (nowhere) Write(p []byte) (int, error) { return len(p), nil }
func (nowhere) Close() error                { return nil }

// console is an attachment to a guest.
type console struct {
	*keeper.Attachment
	e          *Engine
	id         string
	agentSized bool // the terminal is in the guest, and its agent sizes it

	stdin  io.WriteCloser // nil if it was not asked for
	client *agent.Client  // that has it
	closed sync.Once
}

func (c *console) openInput(ctx context.Context) error {
	client, err := c.e.client(ctx, c.id)
	if err != nil {
		return err
	}
	in, err := client.Input(ctx)
	if err != nil {
		client.Close()
		return err
	}
	c.client, c.stdin = client, in
	return nil
}

// Stdin implements engine.Console.
func (c *console) Stdin() io.WriteCloser { return c.stdin }

// Resize implements engine.Console. The keeper's terminal is the line that
// the guest's hangs on; a guest that doesn't answer has its old size.
func (c *console) Resize(cols, rows uint16) error {
	if err := c.Attachment.Resize(cols, rows); err != nil {
		return err
	}
	if !c.agentSized && !c.e.answers(c.id) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), resizeTime)
	defer cancel()
	return c.e.ask(ctx, c.id, func(a *agent.Client) error { return a.ResizeEntry(ctx, cols, rows) })
}

const resizeTime = 2 * time.Second

// Exit implements engine.Console: the guest's end instead of its monitor's.
func (c *console) Exit(ctx context.Context) (api.ExitStatus, error) {
	s, err := c.Attachment.Exit(ctx)
	if err != nil {
		return s, err
	}
	return c.e.ending(c.id, s), nil
}

// Close implements engine.Console.
func (c *console) Close() error {
	c.closed.Do(func() {
		if c.client != nil {
			c.client.Close()
		}
	})
	return c.Attachment.Close()
}
